"""state/jobs/records.py: the hash of a record and what never changes of it hold all of it."""

import pytest

from schemas.checkpoint import FileInfo
from schemas.rank_rule import LayerRule, SpecRule
from schemas.spec import CompressionSpec, CurOptions, Override
from state.jobs.records import (
    JOB_ID,
    Idempotency,
    JobRecord,
    NewJob,
    new_job_id,
    parse_record,
    to_document,
    to_fields,
)

SPECS = [
    CompressionSpec(rank=64),
    CompressionSpec(method="cx", rank=SpecRule(energy=0.1 + 0.2), seed=2**63 - 1, include=("ü*",)),
    CompressionSpec(
        method="cur",
        rank=SpecRule(ratio=0.5),
        cur=CurOptions(storage="two"),
        overrides=(
            Override(match="*.attention.*", rank=LayerRule(error=0.1)),
            Override(match="b", method="svd"),
        ),
        exclude=(),
    ),
    CompressionSpec(rank=64, calibration="my-grams", transposed=("h.*",)),
    CompressionSpec(rank=64, calibration="my-grams", base="my-base", layout="adapter"),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("state", ["queued", "running", "succeeded", "failed", "canceled"])
def test_a_record_is_made_of_its_hash_and_what_never_changes(spec, state, summary, why):
    record = JobRecord(
        id=new_job_id(),
        state=state,
        version=7,
        checkpoint="my-model",
        spec=spec.document(),
        files=(FileInfo(name="model.safetensors", size_bytes=2**53 + 1, sha256="0" * 64),),
        calibration_files=(FileInfo(name="grams.safetensors", size_bytes=1, sha256="1" * 64),),
        base_files=(FileInfo(name="base.safetensors", size_bytes=1, sha256="2" * 64),),
        warnings=("include: the pattern 'ü*' matches no layer",),
        created_at="2026-01-02T03:04:05.678901Z",
        started_at=None if state == "queued" else "2026-01-02T03:04:06.000000Z",
        finished_at="2026-01-02T03:04:07.000001Z" if state in {"succeeded", "failed", "canceled"} else None,
        attempt=2,
        fence=3,
        worker="host:1#abc" if state == "running" else None,
        error=why if state == "failed" else None,
        summary=summary if state == "succeeded" else None,
        result_fence=3 if state == "succeeded" else None,
        single_file="model.safetensors" if state == "succeeded" else None,
        idempotency=Idempotency(key="k\n", fingerprint="f"),
    )
    document = record.model_dump(mode="json", exclude_none=True)
    fixed = {name: document[name] for name in {*NewJob.model_fields, "id", "idempotency"} & set(document)}
    assert to_document(to_fields(document), fixed) == document
    assert to_document(to_fields(document), document) == document
    assert parse_record(document) == record
    assert record.readable


def test_ids_fit_their_pattern_and_differ():
    ids = {new_job_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(JOB_ID.fullmatch(job_id) for job_id in ids)


def test_a_new_job_needs_no_more_than_a_checkpoint_and_a_spec():
    new = NewJob(checkpoint="m", spec=SPECS[0].document())
    assert (new.files, new.calibration_files, new.warnings) == ((), (), ())
