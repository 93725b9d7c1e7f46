"""What each release kept is read, with unknown fields anywhere and without those that it need not have."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from schemas.spec import CompressionSpec
from state.cache.file import DecompositionFile
from state.checkpoints.store import CheckpointStore
from state.data_dir import DataDir
from state.jobs.records import parse_record, to_document, to_fields
from state.jobs.result_files import CONTENTS_NAME, read_contents
from state.jobs.store import JobStore
from worker.checkpoint.spool import LayerSpool
from worker.layer import LayerOutcome

RELEASES = sorted(path for path in Path(__file__).parent.iterdir() if (path / "job.json").is_file())
NEW = "from_the_future"
# All that a record must have. A field that a later release adds gets a default, so this list never grows.
ESSENTIAL = {
    *("id", "checkpoint", "spec", "state", "version", "created_at"),
    *("files.name", "files.size_bytes", "files.sha256", "idempotency.key", "idempotency.fingerprint"),
    *(f"summary.{kind}_{when}" for kind in ("parameters", "bytes") for when in ("before", "after")),
    *("summary.parameter_savings", "summary.compression_factor", "summary.relative_error", "summary.seconds"),
    *("summary.layers_factored", "summary.layers_kept"),
}
# All that a report must have for its files to be served; their sizes are FileInfo's.
SERVED = {"output", "output.files", "output.files.name", "output.files.size_bytes", "output.files.sha256"}

pytestmark = pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)


def objects(document, path=()):
    """Yield the path of each object in a document, and the names on it without the places in lists."""
    if isinstance(document, dict):
        yield path
        for name, value in document.items():
            yield from objects(value, (*path, name))
    elif isinstance(document, list):
        for place, value in enumerate(document):
            yield from objects(value, (*path, place))


def changed(document, path, change):
    document = copy.deepcopy(document)
    found = document
    for step in path:
        found = found[step]
    change(found)
    return document


def with_unknown_fields(document):
    """Yield the document with one more field, at each depth."""
    for path in objects(document):
        yield changed(document, path, lambda found: found.update({NEW: "x"}))


def without_each_field(document, skip=()):
    """Yield each field's path without places in lists, and the document without it."""
    for path in objects(document):
        found = document
        for step in path:
            found = found[step]
        if path[:1] in skip:
            continue
        for name in list(found):
            names = ".".join(str(step) for step in (*path, name) if not isinstance(step, int))
            yield names, changed(document, path, lambda found, name=name: found.pop(name))


@pytest.fixture
def document(release):
    return json.loads((release / "job.json").read_text())


def test_both_forms_of_a_record_are_read(release, document):
    fields = json.loads((release / "hash.json").read_text())
    assert to_document(fields, document) == document
    assert to_document(to_fields(document), document) == document
    record = parse_record(document)
    assert (record.readable, record.state, record.result_fence) == (True, "succeeded", 1)
    CompressionSpec.model_validate(record.spec)


def test_a_record_with_an_unknown_field_anywhere_is_read_and_keeps_it(release, document):
    for newer in with_unknown_fields(document):
        record = parse_record(newer)
        assert record.readable
        assert record.model_copy(update={"spec": {}}) == parse_record(document).model_copy(
            update={"spec": {}}
        )
        assert NEW in json.dumps(to_document(to_fields(newer), newer))


def test_a_record_without_any_field_but_the_essential_ones_is_read(release, document):
    for names, older in without_each_field(document, skip={("spec",)}):
        assert parse_record(older).readable == (names not in ESSENTIAL), names


def test_a_job_is_restored_and_its_result_found(release, document, redis_server, tmp_path):
    paths = DataDir(tmp_path)
    paths.jobs.mkdir()
    paths.job(document["id"]).mkdir()
    shutil.copy(release / "job.json", paths.record(document["id"]))
    jobs = JobStore(redis_server.client(), tmp_path)
    assert [view.record.id for view in jobs.list().jobs] == [document["id"]]
    assert jobs.get(document["id"]) == parse_record(document)


def test_a_result_is_served_with_and_without_its_digests(release, tmp_path):
    expected = read_contents(release / "result")
    assert list(expected) == ["model.safetensors", "report.json"]
    report = json.loads((release / "result" / "report.json").read_text())
    path = tmp_path / "report.json"
    for newer in (report, *with_unknown_fields(report)):
        path.write_text(json.dumps(newer))
        found = read_contents(tmp_path)
        assert found["model.safetensors"] == expected["model.safetensors"]
    for names, older in without_each_field(report):
        path.write_text(json.dumps(older))
        if names not in SERVED:
            assert read_contents(tmp_path)["model.safetensors"] == expected["model.safetensors"]
    shutil.copy(release / "result" / "report.json", path)
    assert not (tmp_path / CONTENTS_NAME).exists()
    assert read_contents(tmp_path) == expected


def test_finished_layers_are_read_with_an_unknown_field_anywhere(release):
    with LayerSpool(release / "spool") as spool:
        outcomes = [spool.get(number) for number in range(2)]
        assert all(spool.factors(number) for number in range(2))
    for text in outcomes:
        assert text is not None
        outcome = LayerOutcome.model_validate_json(text)
        assert outcome.report.outcome == "factored"
        for newer in with_unknown_fields(json.loads(text)):
            assert LayerOutcome.model_validate(newer) == outcome


def test_a_manifest_is_read_with_an_unknown_field(release, tmp_path):
    manifest = json.loads((release / ".manifest.json").read_text())
    path = DataDir(tmp_path).manifest("m")
    path.parent.mkdir(parents=True)
    (path.parent / "model.safetensors").write_bytes(b"")
    path.write_text(json.dumps({name: entry | {NEW: "x"} for name, entry in manifest.items()}))
    file = CheckpointStore(tmp_path).file("m", "model.safetensors")
    assert file is not None
    assert file.model_dump() == manifest["model.safetensors"]


def test_cached_decompositions_are_read(release):
    paths = list((release / "decompositions").glob("*/*.safetensors"))
    assert len(paths) == 2
    for path in paths:
        with DecompositionFile(path, bytes.fromhex(path.stem)) as file:
            assert len(file.head.singular_values) == 8
