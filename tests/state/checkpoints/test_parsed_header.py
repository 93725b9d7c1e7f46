"""state/checkpoints/parsed_header.py: a stranger's header is parsed once, and what it costs is bounded."""

import json
import struct

import pytest

from schemas.format.errors import CheckpointError
from schemas.format.header import parse_tensors
from schemas.format.header_stream import read_header
from state.checkpoints.parsed_header import (
    MAX_CHECKPOINT_HEADER_BYTES,
    MAX_TENSORS,
    HeaderSize,
    PackedHeader,
    kept_path,
    stored_header,
    stored_header_size,
)
from state.errors import Busy
from state.uploads.upload import HeadersUnderWay

PLAIN = "model.safetensors"
HEADER = json.dumps(
    {
        "__metadata__": {"a": "é\n\u2028"},
        "b\u00e9": {"dtype": "F16", "shape": [2, 3], "data_offsets": [8, 20]},
        "a": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]},
        "empty": {"dtype": "U8", "shape": [0], "data_offsets": [8, 8]},
    }
).encode()
CONTENT = struct.pack("<Q", len(HEADER)) + HEADER + bytes(20)


def test_a_packed_header_is_the_same_header():
    header = parse_tensors(HEADER)
    packed = PackedHeader.of(header)

    assert packed.header() == header
    assert packed.size == HeaderSize(3, len(HEADER))


@pytest.fixture
def stored(send, checkpoints):
    return send("m", PLAIN, CONTENT).info, checkpoints.get("m").folder


def test_a_stored_header_is_not_parsed_again(stored):
    info, folder = stored
    # The file itself is no longer what it was, and nobody looks.
    (folder / PLAIN).chmod(0o600)
    (folder / PLAIN).write_bytes(b"not safetensors")

    assert stored_header(folder, info) == parse_tensors(HEADER)
    assert stored_header_size(folder, info) == HeaderSize(3, len(HEADER))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"   1", b"   0", 1)),
        lambda path: path.write_bytes(b"0" * 64 + path.read_bytes()[64:]),
    ],
    ids=["missing", "empty", "cut", "of another version", "of another file"],
)
def test_a_kept_header_that_does_not_fit_is_made_again(stored, damage):
    info, folder = stored
    path = kept_path(folder, PLAIN)
    before = path.read_bytes()
    damage(path)

    assert stored_header(folder, info) == read_header(folder / PLAIN)
    assert path.read_bytes() == before
    damage(path)
    assert stored_header_size(folder, info) == HeaderSize(3, len(HEADER))


def test_a_header_that_cannot_be_kept_is_still_read(stored):
    info, folder = stored
    kept_path(folder, PLAIN).unlink()
    kept_path(folder, PLAIN).mkdir()

    assert stored_header(folder, info) == read_header(folder / PLAIN)


def test_all_headers_of_a_checkpoint_together_are_bounded(stored, checkpoints):
    info, _ = stored
    others = HeaderSize(MAX_TENSORS - 3, MAX_CHECKPOINT_HEADER_BYTES - len(HEADER))
    checkpoints.check_header_sizes("m", {PLAIN: info}, [others])
    for one, fault in ((HeaderSize(1, 0), "too-many-tensors"), (HeaderSize(0, 1), "header-too-large")):
        with pytest.raises(CheckpointError, match="together; at most") as refused:
            checkpoints.check_header_sizes("m", {PLAIN: info}, [others, one])
        assert refused.value.fault == fault


def test_one_header_is_always_received_and_no_more_than_the_process_can_keep():
    under_way = HeadersUnderWay(10)
    under_way.take(11)
    with pytest.raises(Busy, match="11 bytes are being received"):
        under_way.take(1)
    under_way.give(11)
    under_way.take(5)
    under_way.take(5)
    with pytest.raises(Busy):
        under_way.take(1)


def test_an_upload_that_is_broken_off_counts_no_longer(checkpoints, monkeypatch):
    under_way = HeadersUnderWay(10)
    monkeypatch.setattr("state.uploads.upload.HEADERS_UNDER_WAY", under_way)
    with checkpoints.receive("m", PLAIN, content_bytes=None, limit_bytes=1 << 20) as upload:
        upload.write(CONTENT[:20])
        with pytest.raises(Busy):
            under_way.take(1)
    under_way.take(10)
