"""cache/store.py: decompositions are found by content, and deleted with their input."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from state.cache.key import MAX_SOLVERS
from state.data_dir import DataDir
from state.errors import FilesLocked
from tests.state.decompositions import KEY, SHA, example, files, folders, read
from tests.stopped import stopped_holder


def test_an_empty_cache_finds_nothing(cache):
    assert cache.open(KEY) is None
    assert cache.spectra([KEY]) == {}
    cache.trim()
    cache.remove_orphans(lambda: pytest.fail("the cache is empty"))


@pytest.mark.parametrize(
    "other",
    [
        {"tensor": "b.weight"},
        {"dtype": "BF16"},
        {"shape": (300, 400)},
        {"transposed": True},
        {"calibration_sha256": "cd" * 32},
        {"base_sha256": "cd" * 32},
        {"file_sha256": "cd" * 32},
        {"solver": 1},
    ],
)
def test_another_content_is_another_key(cache, source, other):
    cache.put(KEY, *example(), sources=[source])

    assert cache.open(replace(KEY, **other)) is None
    assert read(cache) is not None


def test_spectra_are_those_of_the_steps_up_to_the_first_that_is_missing(cache, source):
    steps = [example(replace(KEY, solver=solver), seed=solver) for solver in range(MAX_SOLVERS)]
    for solver, known in ((1, 0), (0, 2), (3, 2), (2, 4)):
        cache.put(replace(KEY, solver=solver), *steps[solver], sources=[source])
        found = cache.spectra([KEY]).get(KEY.tensor, ())
        assert found == tuple(head.spectrum for head, _ in steps[:known])


def test_a_replaced_file_stays_whole_for_its_reader(cache, source):
    old, new = example(seed=1), example(seed=2)
    cache.put(KEY, *old, sources=[source])
    with cache.open(KEY) as file:
        cache.put(KEY, *new, sources=[source])
        buffer = bytearray(len(old[1]))
        file.read_into(memoryview(buffer))
        assert buffer == old[1]
    assert read(cache) == (new[0], bytes(new[1]))


WRITER = """
import sys
from pathlib import Path
from tests.state.decompositions import SIZE, example, numbered, read
from state.cache.store import DecompositionCache
root, writer = Path(sys.argv[1]), int(sys.argv[2])
cache = DecompositionCache.shared(root, limit_bytes=3 * SIZE)
keys = numbered(5)
whole = {key: [example(key, seed=seed) for seed in (0, 1)] for key in keys}
seen = 0
for turn in range(40):
    key = keys[(turn + writer) % 5]
    cache.put(key, *whole[key][writer], sources=[root])
    for key in keys:
        found = read(cache, key)
        seen += found is not None
        assert found is None or found in [(head, bytes(basis)) for head, basis in whole[key]]
assert seen > 40
print("done")
"""


def run(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)


def test_concurrent_processes_see_whole_files_or_none(tmp_path):
    running = [run(WRITER, tmp_path, writer) for writer in (0, 1)]

    assert [process.communicate()[0] for process in running] == [b"done\n", b"done\n"]
    # The limit, and what the other one was writing when the cache was last looked at.
    assert len(files(tmp_path)) in {3, 4}


def test_a_full_disk_raises_nothing_and_leaves_nothing(tmp_path):
    code = """
import resource, signal, sys
from pathlib import Path
from tests.state.decompositions import KEY, SHA, example
from state.cache.store import DecompositionCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
cache = DecompositionCache.shared(Path(sys.argv[1]), limit_bytes=1 << 30)
assert cache.put(KEY, *example(), sources=[Path(sys.argv[1])]) is False
"""
    process = run(code, tmp_path)
    out, _ = process.communicate()

    assert process.returncode == 0, out
    assert b"cannot be stored" in out
    assert files(tmp_path) == []
    assert not list((tmp_path / "parts").iterdir())


def test_a_folder_that_cannot_be_created_raises_nothing(cache, source, tmp_path, caplog):
    (tmp_path / "decompositions").write_text("in the way")

    assert not cache.put(KEY, *example(), sources=[source])
    assert cache.open(KEY) is None
    assert "cannot be stored" in caplog.text


def test_a_decomposition_of_a_file_deleted_meanwhile_is_not_kept(cache, source, tmp_path):
    assert not cache.put(KEY, *example(), sources=[source, tmp_path / "deleted"])
    assert files(tmp_path) == []


@pytest.fixture
def decomposed(cache, store_file, checkpoints, tmp_path):
    """Return what stores a checkpoint and keeps a decomposition of its file; returns the key."""

    def keep(checkpoint_id):
        file = store_file(checkpoint_id, "model.safetensors")
        key = replace(KEY, file_sha256=file.sha256)
        source = DataDir(tmp_path).checkpoint(checkpoint_id) / file.name
        assert cache.put(key, *example(key), sources=[source])
        return key

    return keep


def test_decompositions_are_deleted_with_their_checkpoint(decomposed, checkpoints, tmp_path):
    decomposed("m")
    checkpoints.delete("m")

    assert folders(tmp_path) == []


def test_decompositions_stay_while_another_checkpoint_has_the_same_file(decomposed, checkpoints, cache):
    key = decomposed("m")
    decomposed("n")
    checkpoints.delete("m")
    assert cache.open(key) is not None
    checkpoints.delete("n")
    assert cache.open(key) is None


@pytest.mark.parametrize("gone", ["m", "other"])
@pytest.mark.parametrize("use", ["calibration_sha256", "base_sha256"])
def test_decompositions_are_deleted_with_their_calibration_and_their_base(
    decomposed, send, safetensors, checkpoints, cache, gone, use
):
    plain = decomposed("m")
    other = send("other", "other.safetensors", safetensors(gram=(2, 2)))
    with_both = replace(plain, **{use: other.info.sha256})
    cache.put(with_both, *example(with_both), sources=[])
    checkpoints.delete(gone)

    assert cache.open(with_both) is None
    assert (cache.open(plain) is None) == (gone == "m")


LONG_OWNER = "o" * 64
FOUR = replace(KEY, calibration_sha256=f"{'c1' * 32}-{'c2' * 32}", base_sha256="ba" * 32)
DIGESTS = (SHA, "c1" * 32, "c2" * 32, "ba" * 32)


@pytest.mark.parametrize("owner", ["", "alice", LONG_OWNER])
@pytest.mark.parametrize("gone", DIGESTS)
def test_what_depends_on_many_files_of_a_long_named_owner_is_found_and_goes_with_each(
    cache, source, owner, gone
):
    own = cache.of(owner)
    assert own.put(FOUR, *example(FOUR), sources=[source])
    assert read(own, FOUR) is not None
    assert own.spectra([FOUR]) != {}
    assert cache.of("another").open(FOUR) is None
    assert own.open(replace(FOUR, base_sha256="bb" * 32)) is None

    own.remove_of(gone)
    assert own.open(FOUR) is None


@pytest.mark.parametrize("gone", DIGESTS)
def test_what_depends_on_many_files_stays_while_all_are_stored(cache, source, gone, tmp_path):
    own = cache.of(LONG_OWNER)
    assert own.put(FOUR, *example(FOUR), sources=[source])
    held = {f"{LONG_OWNER}@{digest}" for digest in DIGESTS}
    cache.remove_orphans(lambda: held)
    assert read(own, FOUR) is not None
    cache.remove_orphans(lambda: held - {f"{LONG_OWNER}@{gone}"})
    assert own.open(FOUR) is None
    assert not any(folder.name.endswith("+") for folder in folders(tmp_path))


def test_a_deletion_reads_no_other_manifest(decomposed, send, safetensors, checkpoints, cache, tmp_path):
    key = decomposed("m")
    send("n", "other.safetensors", safetensors(other=(2, 2)))
    manifest = tmp_path / "checkpoints" / "n" / ".manifest.json"
    manifest.write_text("nonsense")
    checkpoints.delete("m")

    assert not checkpoints.exists("m")
    assert cache.open(key) is None


def test_decompositions_left_by_a_killed_deletion_are_removed(decomposed, checkpoints, cache, tmp_path):
    key = decomposed("m")
    checkpoints.remove_orphans()
    assert cache.open(key) is not None
    (tmp_path / "checkpoints" / "m" / ".manifest.json").unlink()
    checkpoints.remove_orphans()
    assert cache.open(key) is None
    assert folders(tmp_path) == []


def test_a_job_does_without_a_cache_that_a_stopped_process_locks(cache, source, tmp_path):
    assert cache.put(KEY, *example(), sources=[source])
    keys = [replace(KEY, tensor=f"{number}.weight") for number in range(50)]
    with stopped_holder(tmp_path / "decompositions" / ".lock"):
        began = time.monotonic()
        assert not any(cache.put(key, *example(key), sources=[source]) for key in keys)
        # It waits for the first, and not for each of the others.
        assert time.monotonic() - began < 30
        assert read(cache) is not None
        for clean in (cache.trim, partial(cache.free_space, 1)):
            with pytest.raises(FilesLocked):
                clean()


def test_nobody_waits_for_a_decomposition_that_another_process_is_writing(make_cache, source, monkeypatch):
    writer, other = make_cache(), make_cache()
    publish = writer._publish

    def write_slowly(*arguments):
        monkeypatch.undo()
        assert other.put(replace(KEY, tensor="b"), *example(replace(KEY, tensor="b")), sources=[source])
        publish(*arguments)

    monkeypatch.setattr(writer, "_publish", write_slowly)

    assert writer.put(KEY, *example(), sources=[source])


def test_each_kind_of_worker_keeps_its_own(cache, source):
    one, two = (replace(KEY, origin=origin) for origin in ("aaaa", "bbbb"))
    contents = [example(key, seed=seed) for seed, key in enumerate((one, two))]
    for key, content in zip((one, two), contents, strict=True):
        assert cache.put(key, *content, sources=[source])

    assert one.digest == two.digest == KEY.digest
    for key, (head, basis) in zip((one, two), contents, strict=True):
        assert read(cache, key) == (head, bytes(basis))
    # The service takes the spectrum of any, but not of several at once.
    assert cache.spectra([KEY]) == {KEY.tensor: (contents[0][0].spectrum,)}
    assert cache.spectra([two]) == {KEY.tensor: (contents[1][0].spectrum,)}
