"""state/cache/file.py: a damaged decomposition is never used, and stock tools open a whole one."""

import os
import random
from dataclasses import replace

import pytest
from safetensors import safe_open

from schemas.spectrum import Spectrum
from state.cache import file as cache_file
from state.cache.file import BLOCK_ROWS, DamagedFile, encode_header
from tests.state.decompositions import KEY, example, files, path_of, read

BEGIN_BYTES = len(encode_header(*example()))
VALUES_BYTES = 8 * 300
REGIONS = {
    "length of the header": range(8),
    "header": range(8, BEGIN_BYTES - VALUES_BYTES),
    "singular values": range(BEGIN_BYTES - VALUES_BYTES, BEGIN_BYTES),
    "first block": range(BEGIN_BYTES, BEGIN_BYTES + 128 * 1200),
    "last block": range(BEGIN_BYTES + 256 * 1200, BEGIN_BYTES + 300 * 1200),
}


@pytest.mark.parametrize("item_bytes", [4, 8])
@pytest.mark.parametrize("rows", [1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 300])
def test_a_decomposition_is_read_as_it_was_put(cache, source, tmp_path, rows, item_bytes):
    head, basis = example(rows=rows, item_bytes=item_bytes)

    assert cache.put(KEY, head, basis, sources=[source])
    assert read(cache) == (head, bytes(basis))
    assert cache.spectra([KEY]) == {
        "a.weight": (Spectrum(head.singular_values, head.exponent, head.roundoff),)
    }
    assert not list((tmp_path / "parts").iterdir())


@pytest.mark.parametrize(("rows", "read_rows"), [(1, 128), (128, 128), (129, 256), (256, 256), (257, 300)])
def test_a_small_rank_reads_only_the_blocks_that_hold_it(cache, source, rows, read_rows):
    head, basis = example()
    cache.put(KEY, head, basis, sources=[source])

    assert read(cache, rows=rows) == (head, bytes(basis[: read_rows * head.row_bytes]))


@pytest.mark.parametrize("region", REGIONS)
def test_a_file_with_a_flipped_bit_is_absent_and_removed(cache, source, tmp_path, region):
    places = REGIONS[region]
    for at in {places[0], places[-1], *random.Random(1).choices(places, k=8)}:
        cache.put(KEY, *example(), sources=[source])
        content = bytearray(path_of(cache).read_bytes())
        content[at] ^= 1 << at % 8
        path_of(cache).write_bytes(content)

        if at < BEGIN_BYTES:
            assert cache.spectra([KEY]) == {}
        assert read(cache) is None
        assert files(tmp_path) == []


def test_no_byte_of_a_small_file_can_change_unnoticed(cache, source):
    key = replace(KEY, shape=(2, 2))
    cache.put(key, *example(key, rows=1, length=2), sources=[source])
    path = path_of(cache, key)
    whole = path.read_bytes()
    for at in range(len(whole)):
        content = bytearray(whole)
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        assert read(cache, key) is None, at
    path.write_bytes(whole)
    assert read(cache, key) is not None


@pytest.mark.parametrize("item_bytes", [4, 8])
def test_the_stock_reader_opens_it_and_finds_everything(cache, source, item_bytes):
    head, basis = example(rows=200, item_bytes=item_bytes)
    cache.put(KEY, head, basis, sources=[source])

    with safe_open(path_of(cache), "numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    assert set(tensors) == {"singular_values", "basis"}
    assert tensors["singular_values"].dtype == "float64"
    assert tensors["singular_values"].tolist() == head.singular_values.tolist()
    assert tensors["basis"].dtype == {4: "float32", 8: "float64"}[item_bytes]
    assert tensors["basis"].shape == (200, 300)
    assert tensors["basis"].tobytes() == basis
    assert metadata["key"] == KEY.digest.hex()
    assert (metadata["exponent"], float(metadata["roundoff"]), metadata["axis"]) == ("2", 1e-9, "columns")


def test_damage_beyond_the_rank_does_not_matter_to_it(cache, source):
    head, basis = example()
    cache.put(KEY, head, basis, sources=[source])
    content = bytearray(path_of(cache).read_bytes())
    content[-1] ^= 1
    path_of(cache).write_bytes(content)

    assert read(cache, rows=256) == (head, bytes(basis[: 256 * head.row_bytes]))
    assert read(cache, rows=257) is None


@pytest.mark.parametrize("size", [0, 7, 8, 50, 1000, BEGIN_BYTES, 4096, 100_000, -1])
def test_a_truncated_file_is_absent_and_removed(cache, source, tmp_path, size):
    cache.put(KEY, *example(), sources=[source])
    path_of(cache).write_bytes(path_of(cache).read_bytes()[:size])

    assert cache.spectra([KEY]) == {}
    assert read(cache) is None
    assert files(tmp_path) == []


def test_a_file_with_more_bytes_is_absent(cache, source):
    cache.put(KEY, *example(), sources=[source])
    with path_of(cache).open("ab") as file:
        file.write(b"\0")

    assert read(cache) is None


def test_a_file_cut_short_while_it_is_read_is_damaged(cache, source):
    cache.put(KEY, *example(), sources=[source])
    file = cache.open(KEY)
    os.truncate(path_of(cache), 5000)

    with file, pytest.raises(DamagedFile, match="too soon"):
        file.read_into(memoryview(bytearray(300 * 1200)))


@pytest.mark.parametrize("other", [{"tensor": "b.weight"}, {"dtype": "BF16"}, {"shape": (300, 400)}])
def test_a_file_of_another_key_is_absent_and_removed(cache, source, other):
    key = replace(KEY, **other)
    cache.put(key, *example(key), sources=[source])
    path_of(cache, key).rename(path_of(cache))

    assert read(cache) is None
    assert not path_of(cache).exists()


def test_a_file_of_another_version_is_damaged(cache, source, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cache_file, "FORMAT", "eckart-decomposition-99")
        cache.put(KEY, *example(), sources=[source])
        assert read(cache) is not None

    assert read(cache) is None
    assert not path_of(cache).exists()


@pytest.mark.parametrize("of", ["binary", "safetensors", "text"])
def test_a_file_of_another_kind_is_damaged_and_removed(cache, source, safetensors, of):
    """Among them the binary files of releases before."""
    cache.put(KEY, *example(), sources=[source])
    binary = b"eckartD\x01" + random.Random(1).randbytes(100_000)
    path_of(cache).write_bytes({"binary": binary, "safetensors": safetensors(), "text": b"{}" * 1000}[of])

    assert cache.spectra([KEY]) == {}
    assert read(cache) is None
    assert not path_of(cache).exists()


@pytest.mark.parametrize("place", ["directory", "pipe", "loop"])
def test_directories_pipes_and_links_are_absent_and_never_block(cache, source, place):
    cache.put(KEY, *example(), sources=[source])
    path = path_of(cache)
    path.unlink()
    {"directory": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path)}[place]()

    assert cache.open(KEY) is None
    assert cache.spectra([KEY]) == {}
