"""state/cache.py, cache_file.py: decompositions are whole or absent, bounded, and go with their input."""

import os
import random
import shutil
import subprocess
import sys
import time
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from schemas.spectrum import Spectrum
from state import cache_file
from state.cache import STEPS, DecompositionCache, DecompositionKey, make_room
from state.cache_file import BLOCK_ROWS, DamagedFile, DecompositionHeader, encode_header
from state.data_dir import DataDir

SHA = "ab" * 32
KEY = DecompositionKey(SHA, "a.weight", "F32", (400, 300))
ENVIRONMENT = b"e" * 32


def example(key=KEY, *, rows=300, length=300, item_bytes=4, seed=0, exponent=2):
    """Return a header and a random basis of that shape."""
    chance = random.Random(seed)
    values = array("d", sorted((chance.random() for _ in range(min(key.shape))), reverse=True))
    head = DecompositionHeader(
        key.digest, ENVIRONMENT, exponent, 1e-9, "columns", item_bytes, rows, length, values
    )
    return head, memoryview(chance.randbytes(rows * length * item_bytes))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    return path


@pytest.fixture
def make(tmp_path):
    """Return what creates caches on the same folder, as several processes have them."""

    def store(limit_bytes=1 << 30):
        return DecompositionCache.shared(tmp_path, limit_bytes=limit_bytes)

    return store


@pytest.fixture
def store(make):
    return make()


def path_of(store, key=KEY):
    return store._path(key)


def read(store, key=KEY, rows=None):
    """Return the header and the leading rows as a reader gets them; None if missing or damaged."""
    file = store.open(key)
    if file is None:
        return None
    with file:
        count = file.rows_of_blocks(file.head.rows if rows is None else rows)
        buffer = bytearray(count * file.head.row_bytes)
        try:
            file.read_into(memoryview(buffer))
        except DamagedFile as damage:
            store.discard(key, damage)
            return None
        return file.head, bytes(buffer)


def files(tmp_path):
    return sorted(path.name for path in (tmp_path / "decompositions").glob("*/*"))


def folders(tmp_path):
    return [path for path in (tmp_path / "decompositions").iterdir() if path.is_dir()]


@pytest.mark.parametrize("item_bytes", [4, 8])
@pytest.mark.parametrize("rows", [1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 300])
def test_a_decomposition_is_read_as_it_was_put(store, source, tmp_path, rows, item_bytes):
    head, basis = example(rows=rows, item_bytes=item_bytes)

    assert store.put(KEY, head, basis, sources=[source])
    assert read(store) == (head, bytes(basis))
    assert store.spectra([KEY]) == {
        "a.weight": (Spectrum(head.singular_values, head.exponent, head.roundoff),)
    }
    assert not list((tmp_path / "parts").iterdir())


@pytest.mark.parametrize(("rows", "read_rows"), [(1, 128), (128, 128), (129, 256), (256, 256), (257, 300)])
def test_a_small_rank_reads_only_the_blocks_that_hold_it(store, source, rows, read_rows):
    head, basis = example()
    store.put(KEY, head, basis, sources=[source])

    assert read(store, rows=rows) == (head, bytes(basis[: read_rows * head.row_bytes]))


def test_an_empty_cache_finds_nothing(store):
    assert store.open(KEY) is None
    assert store.spectra([KEY]) == {}
    store.trim()
    store.remove_orphans(lambda: pytest.fail("nobody need be asked"))


@pytest.mark.parametrize(
    "other",
    [
        {"tensor": "b.weight"},
        {"dtype": "BF16"},
        {"shape": (300, 400)},
        {"transposed": True},
        {"calibration_sha256": "cd" * 32},
        {"file_sha256": "cd" * 32},
        {"step": 1},
    ],
)
def test_another_content_is_another_key(store, source, other):
    store.put(KEY, *example(), sources=[source])

    assert store.open(replace(KEY, **other)) is None
    assert read(store) is not None


BEGIN_BYTES = len(encode_header(*example()))
VALUES_BYTES = 8 * 300
REGIONS = {
    "length of the header": range(8),
    "header": range(8, BEGIN_BYTES - VALUES_BYTES),
    "singular values": range(BEGIN_BYTES - VALUES_BYTES, BEGIN_BYTES),
    "first block": range(BEGIN_BYTES, BEGIN_BYTES + 128 * 1200),
    "last block": range(BEGIN_BYTES + 256 * 1200, BEGIN_BYTES + 300 * 1200),
}


@pytest.mark.parametrize("region", REGIONS)
def test_a_file_with_a_flipped_bit_is_absent_and_removed(store, source, tmp_path, region):
    places = REGIONS[region]
    for at in {places[0], places[-1], *random.Random(1).choices(places, k=8)}:
        store.put(KEY, *example(), sources=[source])
        content = bytearray(path_of(store).read_bytes())
        content[at] ^= 1 << at % 8
        path_of(store).write_bytes(content)

        if at < BEGIN_BYTES:
            assert store.spectra([KEY]) == {}
        assert read(store) is None
        assert files(tmp_path) == []


def test_no_byte_of_a_small_file_can_change_unnoticed(store, source):
    key = replace(KEY, shape=(2, 2))
    store.put(key, *example(key, rows=1, length=2), sources=[source])
    path = path_of(store, key)
    whole = path.read_bytes()
    for at in range(len(whole)):
        content = bytearray(whole)
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        assert read(store, key) is None, at
    path.write_bytes(whole)
    assert read(store, key) is not None


@pytest.mark.parametrize("item_bytes", [4, 8])
def test_the_stock_reader_opens_it_and_finds_everything(store, source, item_bytes):
    head, basis = example(rows=200, item_bytes=item_bytes)
    store.put(KEY, head, basis, sources=[source])

    with safe_open(path_of(store), "numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    assert set(tensors) == {"singular_values", "basis"}
    assert tensors["singular_values"].dtype == "float64"
    assert tensors["singular_values"].tolist() == head.singular_values.tolist()
    assert tensors["basis"].dtype == {4: "float32", 8: "float64"}[item_bytes]
    assert tensors["basis"].shape == (200, 300)
    assert tensors["basis"].tobytes() == basis
    assert metadata["key"] == KEY.digest.hex()
    assert (metadata["exponent"], float(metadata["roundoff"]), metadata["side"]) == ("2", 1e-9, "columns")


def test_damage_beyond_the_rank_does_not_matter_to_it(store, source):
    head, basis = example()
    store.put(KEY, head, basis, sources=[source])
    content = bytearray(path_of(store).read_bytes())
    content[-1] ^= 1
    path_of(store).write_bytes(content)

    assert read(store, rows=256) == (head, bytes(basis[: 256 * head.row_bytes]))
    assert read(store, rows=257) is None


@pytest.mark.parametrize("size", [0, 7, 8, 50, 1000, BEGIN_BYTES, 4096, 100_000, -1])
def test_a_truncated_file_is_absent_and_removed(store, source, tmp_path, size):
    store.put(KEY, *example(), sources=[source])
    path_of(store).write_bytes(path_of(store).read_bytes()[:size])

    assert store.spectra([KEY]) == {}
    assert read(store) is None
    assert files(tmp_path) == []


def test_a_file_with_more_bytes_is_absent(store, source):
    store.put(KEY, *example(), sources=[source])
    with path_of(store).open("ab") as file:
        file.write(b"\0")

    assert read(store) is None


def test_a_file_cut_short_while_it_is_read_is_damaged(store, source):
    store.put(KEY, *example(), sources=[source])
    file = store.open(KEY)
    os.truncate(path_of(store), 5000)

    with file, pytest.raises(DamagedFile, match="too soon"):
        file.read_into(memoryview(bytearray(300 * 1200)))


@pytest.mark.parametrize("other", [{"tensor": "b.weight"}, {"dtype": "BF16"}, {"shape": (300, 400)}])
def test_a_file_of_another_key_is_absent_and_removed(store, source, other):
    key = replace(KEY, **other)
    store.put(key, *example(key), sources=[source])
    path_of(store, key).rename(path_of(store))

    assert read(store) is None
    assert not path_of(store).exists()


def test_a_file_of_another_version_is_damaged(store, source, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cache_file, "FORMAT", "eckart-decomposition-99")
        store.put(KEY, *example(), sources=[source])
        assert read(store) is not None

    assert read(store) is None
    assert not path_of(store).exists()


@pytest.mark.parametrize("of", ["binary", "safetensors", "text"])
def test_a_file_of_another_kind_is_damaged_and_removed(store, source, safetensors, of):
    """Among them the binary files of releases before."""
    store.put(KEY, *example(), sources=[source])
    binary = b"eckartD\x01" + random.Random(1).randbytes(100_000)
    path_of(store).write_bytes({"binary": binary, "safetensors": safetensors(), "text": b"{}" * 1000}[of])

    assert store.spectra([KEY]) == {}
    assert read(store) is None
    assert not path_of(store).exists()


@pytest.mark.parametrize("place", ["directory", "pipe", "loop"])
def test_directories_pipes_and_links_are_absent_and_never_block(store, source, place):
    store.put(KEY, *example(), sources=[source])
    path = path_of(store)
    path.unlink()
    {"directory": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path)}[place]()

    assert store.open(KEY) is None
    assert store.spectra([KEY]) == {}


def test_spectra_are_those_of_the_steps_up_to_the_first_that_is_missing(store, source):
    steps = [example(replace(KEY, step=step), seed=step) for step in range(STEPS)]
    for step, known in ((1, 0), (0, 2), (3, 2), (2, 4)):
        store.put(replace(KEY, step=step), *steps[step], sources=[source])
        found = store.spectra([KEY]).get(KEY.tensor, ())
        assert found == tuple(head.spectrum for head, _ in steps[:known])


def numbered(count):
    return [replace(KEY, tensor=f"l{i}.weight", file_sha256=f"{i % 2:064d}") for i in range(count)]


SIZE = len(encode_header(*example())) + 300 * 1200


def test_the_least_recently_used_goes_first(make, source, tmp_path):
    keys, store = numbered(4), make(limit_bytes=3 * SIZE)
    for key in keys[:3]:
        store.put(key, *example(key), sources=[source])
        time.sleep(0.01)
    store.open(keys[0]).close()
    store.put(keys[3], *example(keys[3]), sources=[source])

    assert [store.open(key) is not None for key in keys] == [True, False, True, True]


def test_it_never_takes_more_than_its_limit(make, source, tmp_path):
    store = make(limit_bytes=3 * SIZE + SIZE // 2)
    for key in numbered(10):
        assert store.put(key, *example(key), sources=[source])
        assert sum(path.stat().st_size for path in (tmp_path / "decompositions").glob("*/*")) <= 3.5 * SIZE
    assert len(files(tmp_path)) == 3


def test_it_never_takes_more_than_it_leaves_free(tmp_path):
    free_bytes = shutil.disk_usage(tmp_path).free

    assert make_room(tmp_path, free_bytes // 4, limit_bytes=1 << 62)
    assert not make_room(tmp_path, free_bytes * 3 // 4, limit_bytes=1 << 62)
    assert not make_room(tmp_path, free_bytes // 4, limit_bytes=1 << 62, spare_bytes=free_bytes * 3 // 4)


@pytest.mark.parametrize("limit_bytes", [0, SIZE - 1])
def test_a_decomposition_over_the_limit_is_not_kept_and_evicts_nothing(make, source, tmp_path, limit_bytes):
    small = replace(KEY, shape=(300, 1))
    store = make(limit_bytes=limit_bytes)
    kept = store.put(small, *example(small, rows=1, length=1), sources=[source])

    assert kept == (limit_bytes > 0)
    assert not store.put(KEY, *example(), sources=[source])
    assert len(files(tmp_path)) == kept
    assert store.could_hold(limit_bytes)
    assert not store.could_hold(limit_bytes + 1)


def test_a_lower_limit_holds_from_the_next_trim_on(make, source, tmp_path):
    for key in numbered(4):
        make().put(key, *example(key), sources=[source])
    make(limit_bytes=2 * SIZE).trim()
    assert len(files(tmp_path)) == 2
    make(limit_bytes=0).trim()
    assert folders(tmp_path) == []


@pytest.mark.parametrize(
    ("nbytes", "left"), [(0, 3), (1, 2), (SIZE, 2), (SIZE + 1, 1), (3 * SIZE, 0), (3 * SIZE + 1, 3)]
)
def test_space_is_freed_only_if_the_cache_holds_enough(make, source, tmp_path, nbytes, left):
    for key in numbered(3):
        make().put(key, *example(key), sources=[source])
    make().free_space(nbytes)

    assert len(files(tmp_path)) == left


def test_an_evicted_file_that_is_open_stays_readable(make, source):
    store = make()
    head, basis = example()
    store.put(KEY, head, basis, sources=[source])
    with store.open(KEY) as file:
        make(limit_bytes=0).trim()
        assert store.open(KEY) is None
        buffer = bytearray(len(basis))
        file.read_into(memoryview(buffer))
        assert buffer == basis


def test_a_replaced_file_stays_whole_for_its_reader(store, source):
    old, new = example(seed=1), example(seed=2)
    store.put(KEY, *old, sources=[source])
    with store.open(KEY) as file:
        store.put(KEY, *new, sources=[source])
        buffer = bytearray(len(old[1]))
        file.read_into(memoryview(buffer))
        assert buffer == old[1]
    assert read(store) == (new[0], bytes(new[1]))


WRITER = """
import sys
from pathlib import Path
from tests.state.test_cache import SIZE, example, numbered, read
from state.cache import DecompositionCache
root, writer = Path(sys.argv[1]), int(sys.argv[2])
store = DecompositionCache.shared(root, limit_bytes=3 * SIZE)
keys = numbered(5)
whole = {key: [example(key, seed=seed) for seed in (0, 1)] for key in keys}
seen = 0
for turn in range(40):
    key = keys[(turn + writer) % 5]
    store.put(key, *whole[key][writer], sources=[root])
    for key in keys:
        found = read(store, key)
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
    assert len(files(tmp_path)) == 3


def test_a_file_that_is_put_again_evicts_no_other(tmp_path):
    store = DecompositionCache.shared(tmp_path, limit_bytes=3 * SIZE)
    keys = numbered(3)
    for key in (*keys, keys[1], keys[2]):
        assert store.put(key, *example(key), sources=[tmp_path])

    assert all(read(store, key) is not None for key in keys)


def test_a_full_disk_raises_nothing_and_leaves_nothing(tmp_path):
    code = """
import resource, signal, sys
from pathlib import Path
from tests.state.test_cache import KEY, example
from state.cache import DecompositionCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store = DecompositionCache.shared(Path(sys.argv[1]), limit_bytes=1 << 30)
assert store.put(KEY, *example(), sources=[Path(sys.argv[1])]) is False
"""
    process = run(code, tmp_path)
    out, _ = process.communicate()

    assert process.returncode == 0, out
    assert b"cannot be kept" in out
    assert files(tmp_path) == []
    assert not list((tmp_path / "parts").iterdir())


def test_a_folder_that_cannot_be_created_raises_nothing(store, source, tmp_path, caplog):
    (tmp_path / "decompositions").write_text("in the way")

    assert not store.put(KEY, *example(), sources=[source])
    assert store.open(KEY) is None
    assert "cannot be kept" in caplog.text


def test_a_decomposition_of_a_file_deleted_meanwhile_is_not_kept(store, source, tmp_path):
    assert not store.put(KEY, *example(), sources=[source, tmp_path / "deleted"])
    assert files(tmp_path) == []


@pytest.fixture
def decomposed(store, store_file, checkpoints, tmp_path):
    """Return what stores a checkpoint and keeps a decomposition of its file; returns the key."""

    def keep(checkpoint_id):
        file = store_file(checkpoint_id, "model.safetensors")
        key = replace(KEY, file_sha256=file.sha256)
        source = DataDir(tmp_path).checkpoint(checkpoint_id) / file.name
        assert store.put(key, *example(key), sources=[source])
        return key

    return keep


def test_decompositions_are_deleted_with_their_checkpoint(decomposed, checkpoints, tmp_path):
    decomposed("m")
    checkpoints.delete("m")

    assert folders(tmp_path) == []


def test_decompositions_stay_while_another_checkpoint_has_the_same_file(decomposed, checkpoints, store):
    key = decomposed("m")
    decomposed("n")
    checkpoints.delete("m")
    assert store.open(key) is not None
    checkpoints.delete("n")
    assert store.open(key) is None


@pytest.mark.parametrize("gone", ["m", "grams"])
def test_decompositions_are_deleted_with_their_calibration(
    decomposed, send, safetensors, checkpoints, store, gone
):
    plain = decomposed("m")
    grams = send("grams", "grams.safetensors", safetensors(gram=(2, 2)))
    calibrated = replace(plain, calibration_sha256=grams.info.sha256)
    store.put(calibrated, *example(calibrated), sources=[])
    checkpoints.delete(gone)

    assert store.open(calibrated) is None
    assert (store.open(plain) is None) == (gone == "m")


def test_an_unreadable_manifest_does_not_prevent_other_deletions(
    decomposed, store_file, checkpoints, store, tmp_path, caplog
):
    key = decomposed("m")
    store_file("n", "model.safetensors")
    manifest = tmp_path / "checkpoints" / "n" / ".manifest.json"
    manifest.write_text("nonsense")
    checkpoints.delete("m")

    assert not checkpoints.exists("m")
    assert "cannot be removed yet" in caplog.text
    manifest.unlink()
    checkpoints.remove_orphans()
    assert store.open(key) is None


def test_decompositions_left_by_a_killed_deletion_are_removed(decomposed, checkpoints, store, tmp_path):
    key = decomposed("m")
    checkpoints.remove_orphans()
    assert store.open(key) is not None
    (tmp_path / "checkpoints" / "m" / ".manifest.json").unlink()
    checkpoints.remove_orphans()
    assert store.open(key) is None
    assert folders(tmp_path) == []
