"""schemas/format: what we accept, the reference reader reads alike; all else raises a CheckpointError."""

import json
import struct

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from schemas.format.errors import CheckpointError
from schemas.format.header import Header, parse_header
from schemas.format.header_stream import HeaderParser
from schemas.format.tensor import DTYPE_BITS

BYTE_DTYPES = sorted(dtype for dtype, bits in DTYPE_BITS.items() if bits % 8 == 0)
FUZZ = settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])


def framed(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def read(raw: bytes, chunk_bytes: int = 1 << 20) -> Header | None:
    parser = HeaderParser()
    try:
        for at in range(0, len(raw), chunk_bytes):
            parser.feed(raw[at : at + chunk_bytes])
        return parser.finish(len(raw))
    except CheckpointError:
        return None


def assert_alike(header: Header, raw: bytes) -> None:
    ours = {
        info.name: (
            info.dtype,
            list(info.shape),
            raw[header.data_start + info.start : header.data_start + info.end],
        )
        for info in header.tensors
    }
    theirs = {
        name: (entry["dtype"], entry["shape"], bytes(entry["data"])) for name, entry in deserialize(raw)
    }
    assert ours == theirs


@st.composite
def layouts(draw) -> tuple[dict[str, object], int]:
    """Draw a legal header and the size of its data."""
    names = draw(st.lists(st.text("abc.é_", min_size=1, max_size=6), min_size=1, max_size=5, unique=True))
    entries, start = {}, 0
    for name in names:
        dtype = draw(st.sampled_from(BYTE_DTYPES))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        end = start + DTYPE_BITS[dtype] // 8
        for size in shape:
            end = start + (end - start) * size
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    header = dict(draw(st.permutations(list(entries.items()))))
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
    return header, start


TOKENS = [
    "{", "}", "[", "]", ",", ":", '"', " ", "\n", "0", "1", "-", "-0", "1.0", "1e1", "4", "00", "9" * 25,
    "true", "null", "NaN", "'", "//", "\\", "\\ud800", "\\u0061", "é", "\ufeff", "\0", "\x7f", '"dtype"',
    '"F32"', '"F4"', '"shape"', '"data_offsets"', '"__metadata__"', "{}", "[]", '""', ',"x":1', '"a":',
    str(2**63), str(2**64),
]  # fmt: skip


@st.composite
def mutated(draw) -> bytes:
    """Draw a legal file with a few tokens put in, taken out or overwritten."""
    header, data_bytes = draw(layouts())
    text = json.dumps(header, ensure_ascii=draw(st.booleans()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        width = draw(st.sampled_from([0, 0, 1, 1, 2, 8]))
        text = text[:at] + draw(st.sampled_from(["", *TOKENS])) + text[at + width :]
    data_bytes = max(0, data_bytes + draw(st.sampled_from([0, 0, 0, 0, -1, 1])))
    return framed(text.encode(), bytes(data_bytes))


@settings(FUZZ, max_examples=200)
@given(layouts())
def test_every_legal_layout_is_accepted_and_read_alike(layout):
    header, data_bytes = layout
    raw = framed(json.dumps(header).encode(), bytes(index % 251 for index in range(data_bytes)))
    found = read(raw)
    assert found is not None
    assert_alike(found, raw)
    assert found.metadata == header.get("__metadata__", {})


@FUZZ
@given(mutated(), st.integers(1, 9))
def test_a_mutated_file_is_refused_or_read_alike(raw, chunk_bytes):
    found = read(raw)
    if found is not None:
        assert_alike(found, raw)
    assert read(raw, chunk_bytes) == found


@FUZZ
@given(st.lists(st.sampled_from(TOKENS), max_size=30).map("".join), st.integers(0, 8))
@example('{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}', 4)
def test_a_soup_of_tokens_is_refused_or_read_alike(text, data_bytes):
    raw = framed(text.encode(), bytes(data_bytes))
    found = read(raw)
    if found is not None:
        assert_alike(found, raw)


@FUZZ
@given(st.binary(max_size=64))
def test_random_bytes_are_refused_or_read_alike(raw):
    found = read(raw)
    if found is not None:
        assert_alike(found, raw)


@settings(FUZZ, max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_value_in_any_place_raises_nothing_but_a_checkpoint_error(value):
    text = json.dumps(value)
    for header in (
        text,
        f'{{"w":{text}}}',
        f'{{"__metadata__":{text}}}',
        f'{{"__metadata__":{{"a":{text}}}}}',
        f'{{"w":{{"dtype":{text},"shape":{text},"data_offsets":{text}}}}}',
        f'{{"w":{{"dtype":"U8","shape":[{text}],"data_offsets":[0,{text}]}}}}',
    ):
        try:
            parse_header(header.encode(), file_bytes=100)
        except CheckpointError as error:
            assert error.detail.isprintable()  # noqa: PT017 - most values must raise, a few may pass
