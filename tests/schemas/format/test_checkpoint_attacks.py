"""schemas/format: every malformed file is refused with its own fault, in whatever chunks it arrives."""

import json
import struct
import tracemalloc
from dataclasses import dataclass

import pytest
from safetensors import SafetensorError, deserialize

from schemas.format.errors import CheckpointError
from schemas.format.header import parse_header
from schemas.format.header_stream import HeaderParser, read_header

ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
DATA = b"\0" * 4


def framed(header: str | bytes, data: bytes = DATA, *, length: int | None = None) -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def one(dtype='"F32"', shape="[1]", offsets="[0,4]", data: bytes = DATA) -> bytes:
    return framed(f'{{"w":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}', data)


def several(*offsets: tuple[int, int], data: bytes) -> bytes:
    entries = {
        f"t{at}": {"dtype": "U8", "shape": [max(0, end - start)], "data_offsets": [start, end]}
        for at, (start, end) in enumerate(offsets)
    }
    return framed(json.dumps(entries), data)


def with_metadata(metadata: str) -> bytes:
    return framed(f'{{"__metadata__":{metadata},"w":{ENTRY}}}')


@dataclass(frozen=True)
class Attack:
    """A bad file, the fault of the error, and words that its message must contain."""

    label: str
    raw: bytes
    fault: str
    names: str
    # The reference reader accepts some of these files; we do not.
    reference_accepts: bool = False


ATTACKS = [
    # The length of the header.
    Attack("empty file", b"", "too-short", "has 0 bytes"),
    Attack("seven bytes", b"\1\0\0\0\0\0\0", "too-short", "has 7 bytes"),
    Attack("length alone", struct.pack("<Q", 64), "no-header", "64 bytes"),
    Attack(
        "header longer than the file",
        framed(f'{{"w":{ENTRY}}}', length=9_999),
        "header-past-end",
        "9999 bytes",
    ),
    Attack("length of 2^64 - 1", framed("{}", length=2**64 - 1), "header-length-overflow", str(2**64 - 1)),
    Attack(
        "length that overflows with the eight", framed("{}", length=2**63 - 8), "header-length-overflow", ""
    ),
    Attack("length over the cap", framed("{}", length=32_000_001), "header-too-large", "32000000"),
    Attack("length of 0", framed(""), "empty-header", "0 bytes"),
    Attack(
        "big-endian length",
        struct.pack(">Q", 55) + f'{{"w":{ENTRY}}}'.encode(),
        "big-endian-length",
        "little-endian",
    ),
    # The JSON text.
    Attack("not UTF-8", framed(b'{"\xff":' + ENTRY.encode() + b"}"), "not-utf8", "byte 10"),
    Attack("not UTF-8 from the start", framed(b"\xff\xfe{}"), "not-utf8", "byte 8"),
    Attack("byte order mark", framed(f'\ufeff{{"w":{ENTRY}}}'), "byte-order-mark", "byte 8"),
    Attack("NUL padding", framed(f'{{"w":{ENTRY}}}\0\0'), "nul-padding", "byte 62"),
    Attack("form feed padding", framed(f'{{"w":{ENTRY}}}\f'), "trailing-json", "\\f"),
    Attack("a second object", framed(f'{{"w":{ENTRY}}}{{}}'), "trailing-json", '"{"'),
    Attack("a second brace", framed(f'{{"w":{ENTRY}}}}}'), "trailing-json", '"}"'),
    Attack("random text", framed("{w:[1]}"), "not-json", '"w"'),
    Attack("word instead of an object", framed("hello"), "not-json", '"h"'),
    Attack("only whitespace", framed("   "), "truncated-json", "byte 11"),
    Attack("cut within a name", framed('{"w'), "truncated-json", "ends"),
    Attack("cut before a value", framed('{"w":'), "truncated-json", "ends"),
    Attack("cut within an entry", framed('{"w":{"dtype":"F32"'), "truncated-json", "ends"),
    Attack("cut after an entry", framed(f'{{"w":{ENTRY}'), "truncated-json", "comma"),
    Attack("trailing comma", framed(f'{{"w":{ENTRY},}}'), "not-json", '"}"'),
    Attack("missing colon", framed(f'{{"w"{ENTRY}}}'), "not-json", "colon"),
    Attack("missing comma", framed(f'{{"w":{ENTRY}"v":{ENTRY}}}'), "not-json", "comma"),
    Attack("bare control character", framed(f'{{"w\n":{ENTRY}}}'), "not-json", 'unexpected "\\n"'),
    Attack("bad escape", framed(f'{{"w\\q":{ENTRY}}}'), "not-json", 'unexpected "\\\\'),
    Attack("leading zero", one(offsets="[00,4]"), "not-json", ""),
    Attack("array", framed("[1,2]"), "not-an-object", "object"),
    Attack("string", framed('"weights"'), "not-an-object", "object"),
    Attack("null", framed("null"), "not-an-object", "object"),
    Attack("number", framed("12"), "not-an-object", "object"),
    Attack("NaN", one(shape="[NaN]"), "loose-json", "NaN"),
    Attack("-Infinity", one(offsets="[0,-Infinity]"), "loose-json", "-Infinity"),
    Attack("NaN as an entry", framed('{"w":NaN}'), "loose-json", "NaN"),
    Attack("NaN as metadata", with_metadata('{"a":NaN}'), "loose-json", "NaN"),
    Attack("comment", framed(f'{{/* hi */"w":{ENTRY}}}'), "loose-json", "/*"),
    Attack("line comment", framed(f'{{"w":// hi\n{ENTRY}}}'), "loose-json", "//"),
    Attack("single quotes", framed("{'w':1}"), "loose-json", "'"),
    Attack("lone surrogate in a name", framed(f'{{"w\\ud800":{ENTRY}}}'), "lone-surrogate", "\\ud800"),
    Attack("low surrogate first", framed(f'{{"\\udc00\\ud800":{ENTRY}}}'), "lone-surrogate", "\\udc00"),
    Attack("lone surrogate in metadata", with_metadata('{"a":"\\ud800"}'), "lone-surrogate", '"a"'),
    Attack("lone surrogate as a dtype", one(dtype='"\\ud800"'), "unknown-dtype", "\\ud800"),
    Attack("nesting bomb as the header", framed("[" * 100_000), "not-an-object", ""),
    Attack("nesting bomb as an entry", framed('{"w":' + "[" * 100_000), "nested-too-deep", "deep"),
    Attack("nesting bomb of objects", framed('{"w":' + '{"a":' * 20_000), "nested-too-deep", "deep"),
    Attack("nesting bomb as a shape", one(shape="[" * 50_000 + "]" * 50_000), "nested-too-deep", "deep"),
    Attack("nested shape", one(shape="[" * 60 + "]" * 60), "bad-shape", "shape[0]"),
    Attack("brackets in a string", one(dtype='"' + "[" * 300 + '"'), "unknown-dtype", "[[["),
    Attack("brackets in pairs", one(shape="[" + "[]," * 100 + "0]"), "too-many-dimensions", "101"),
    Attack("flat bomb", one(shape="[" + "0," * 100_000 + "0]"), "value-too-long", "65536"),
    Attack("string bomb", one(dtype='"' + "F" * 100_000 + '"'), "value-too-long", "65536"),
    Attack(
        "fault early in a long text",
        framed('{"w":{"dtype" "F32"},' + " " * 70_000 + "}"),
        "not-json",
        'unexpected "\\""',
    ),
    Attack(
        "fault beyond the short window", framed('{"w":{' + " " * 600 + "dtype:1}}"), "not-json", "byte 614"
    ),
    Attack(
        "escape cut by the long window", one(shape="[" + "0," * 32_745 + '"\u0041"]'), "value-too-long", ""
    ),
    Attack("huge integer", one(shape=f"[{'9' * 5_000}]"), "integer-too-large", "shape[0]"),
    Attack("huge offset", one(offsets=f"[0,{'9' * 5_000}]"), "integer-too-large", "2^63 - 1"),
    Attack("huge integer over a page", one(shape=f"[{'9' * 50_000}]"), "integer-too-large", "shape[0]"),
    Attack(
        "dimension of 2^63",
        one(shape=f"[{2**63},0]", offsets="[0,0]", data=b""),
        "integer-too-large",
        str(2**63),
        True,
    ),
    # Names.
    Attack(
        "name twice, other bytes",
        framed(f'{{"w":{ENTRY},"w":{{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}}}', b"\0" * 8),
        "duplicate-name",
        '"w" appears twice',
    ),
    Attack(
        "name twice, same bytes, other dtype",
        framed(f'{{"w":{ENTRY},"w":{{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}}}'),
        "duplicate-name-same-data",
        "as F32 [1] and as I32 [1]",
        True,
    ),
    Attack(
        "name twice, once escaped",
        framed(f'{{"w":{ENTRY},"\\u0077":{ENTRY}}}'),
        "duplicate-name-same-data",
        '"w"',
        True,
    ),
    Attack(
        "metadata twice",
        framed(f'{{"__metadata__":{{}},"__metadata__":{{}},"w":{ENTRY}}}'),
        "duplicate-metadata",
        "twice",
    ),
    Attack(
        "metadata key twice", with_metadata('{"a":"1","a":"2"}'), "duplicate-metadata-key", '"a" twice', True
    ),
    Attack(
        "dtype twice",
        framed('{"w":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
        "duplicate-key",
        '"dtype"',
    ),
    Attack(
        "unknown key twice",
        framed('{"w":{"x":1,"x":1,"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
        "unknown-key",
        '"x"',
        True,
    ),
    Attack("empty name", framed(f'{{"":{ENTRY}}}'), "empty-name", "empty", True),
    Attack("name of 1025 bytes", framed(f'{{"{"n" * 1025}":{ENTRY}}}'), "name-too-long", "1025 bytes", True),
    Attack(
        "name of 1026 bytes in two-byte characters",
        framed(f'{{"{"é" * 513}":{ENTRY}}}'),
        "name-too-long",
        "1026",
        True,
    ),
    Attack("newline in a name", framed(f'{{"a\\nb":{ENTRY}}}'), "control-character", "U+000A", True),
    Attack("NUL in a name", framed(f'{{"a\\u0000":{ENTRY}}}'), "control-character", "U+0000", True),
    Attack(
        "escape sequence in a name", framed(f'{{"\\u001b[2J":{ENTRY}}}'), "control-character", "U+001B", True
    ),
    Attack("text reversal in a name", framed(f'{{"a\u202eb":{ENTRY}}}'), "control-character", "U+202E", True),
    # Metadata.
    Attack(
        "metadata null twice",
        framed(f'{{"__metadata__":null,"__metadata__":null,"w":{ENTRY}}}'),
        "duplicate-metadata",
        "twice",
    ),
    Attack("metadata a word", with_metadata("none"), "not-json", '"n"'),
    Attack("metadata a string", with_metadata('"pt"'), "metadata-not-object", "__metadata__"),
    Attack("metadata a list", with_metadata("[]"), "metadata-not-object", "__metadata__"),
    Attack("metadata int", with_metadata('{"epoch":3}'), "metadata-not-string", '"epoch"'),
    Attack(
        "metadata of very many entries",
        with_metadata(json.dumps({str(at): "" for at in range(10_001)})),
        "too-many-metadata",
        "more than 10000",
        True,
    ),
    Attack("metadata null value", with_metadata('{"a":null}'), "metadata-not-string", '"a"'),
    Attack("metadata nested", with_metadata('{"a":{"b":"c"}}'), "metadata-not-string", '"a"'),
    Attack("metadata nesting bomb", with_metadata('{"a":' + "[" * 100_000), "metadata-not-string", '"a"'),
    Attack(
        "a tensor named __metadata__",
        framed('{"__metadata__":{"shape":[1],"dtype":"F32","data_offsets":[0,4]}}'),
        "reserved-name",
        "named __metadata__",
    ),
    # Entries.
    Attack("entry a list", framed('{"w":["F32",[1],[0,4]]}'), "entry-not-object", '"w"', True),
    Attack("entry null", framed('{"w":null}'), "entry-not-object", '"w"'),
    Attack("no dtype", framed('{"w":{"shape":[1],"data_offsets":[0,4]}}'), "missing-key", "lacks dtype"),
    Attack(
        "no shape, no offsets", framed('{"w":{"dtype":"F32"}}'), "missing-key", "lacks shape, data_offsets"
    ),
    Attack(
        "unknown key",
        framed('{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"strides":[1]}}'),
        "unknown-key",
        '"strides"',
        True,
    ),
    Attack("unknown dtype", one(dtype='"F128"'), "unknown-dtype", '"F128"'),
    Attack("dtype in lower case", one(dtype='"f32"'), "unknown-dtype", '"f32"'),
    Attack("dtype a number", one(dtype="7"), "unknown-dtype", "7"),
    Attack("dtype an object", one(dtype='{"F32":null}'), "unknown-dtype", "an object", True),
    Attack("shape a number", one(shape="4"), "bad-shape", "not 4"),
    Attack("shape null", one(shape="null"), "bad-shape", "null"),
    Attack("shape an object", one(shape='{"0":1}'), "bad-shape", "an object"),
    Attack(
        "negative dimension",
        one(shape="[1,-1]"),
        "bad-shape",
        "shape[1] must be an integer of at least 0, not -1",
    ),
    Attack("two negative dimensions", one(shape="[-1,-1]"), "bad-shape", "shape[0]"),
    Attack("float dimension", one(shape="[1.0]"), "bad-shape", "not 1.0"),
    Attack("exponent dimension", one(shape="[1e0]"), "bad-shape", "not 1e0"),
    Attack("minus zero dimension", one(shape="[-0]", offsets="[0,0]", data=b""), "bad-shape", "not -0"),
    Attack("true dimension", one(shape="[true]"), "bad-shape", "not true"),
    Attack("string dimension", one(shape='["1"]'), "bad-shape", 'not "1"'),
    Attack("nine dimensions", one(shape="[1,1,1,1,1,1,1,1,1]"), "too-many-dimensions", "9 dimensions", True),
    Attack(
        "dimensions by the thousand",
        one(shape="[" + "1," * 9_999 + "1]"),
        "too-many-dimensions",
        "10000",
        True,
    ),
    Attack("offsets a number", one(offsets="4"), "bad-offsets", "two integers"),
    Attack("one offset", one(offsets="[4]"), "bad-offsets", "two integers"),
    Attack("three offsets", one(offsets="[0,2,4]"), "bad-offsets", "two integers"),
    Attack(
        "float offset", one(offsets="[0,4.0]"), "bad-offsets", "end must be an integer of at least 0, not 4.0"
    ),
    Attack(
        "bool offset",
        one(offsets="[false,4]"),
        "bad-offsets",
        "begin must be an integer of at least 0, not false",
    ),
    Attack("end before begin", one(shape="[0]", offsets="[4,0]"), "reversed-offsets", "end at 0"),
    Attack("negative begin", one(offsets="[-4,0]"), "negative-offset", "negative begin, -4"),
    Attack("negative end", one(offsets="[0,-4]"), "negative-offset", "negative end, -4"),
    Attack(
        "size too small for the shape",
        one(shape="[2]"),
        "size-mismatch",
        "F32 [2] needs 8 bytes, but its offsets span 4",
    ),
    Attack("size too large for the shape", one(shape="[0]"), "size-mismatch", "needs 0 bytes"),
    Attack("product over 2^64", one(shape="[4294967296,4294967296]"), "size-overflow", "2^63 - 1 bits"),
    Attack(
        "product over 2^64 before a zero",
        one(shape="[4294967296,4294967296,0]", offsets="[0,0]", data=b""),
        "size-overflow",
        "",
    ),
    Attack("bits over 2^63", one(dtype='"F64"', shape=f"[{2**58}]"), "size-overflow", "F64"),
    Attack(
        "half a byte", one(dtype='"F4"', shape="[3]", offsets="[0,2]", data=b"\0\0"), "sub-byte", "12 bits"
    ),
    Attack(
        "six-bit floats off a byte",
        one(dtype='"F6_E2M3"', shape="[3]", offsets="[0,2]", data=b"\0\0"),
        "sub-byte",
        "18 bits",
    ),
    # The layout of the data.
    Attack("overlap", several((0, 4), (2, 6), data=b"\0" * 6), "overlap", '"t1" begins at byte 2'),
    Attack("two names for one range", several((0, 4), (0, 4), data=DATA), "overlap", '"t1" begins at byte 0'),
    Attack("hole", several((0, 4), (6, 8), data=b"\0" * 8), "hole", '"t0" ends at 4'),
    Attack("hole hidden by an empty tensor", several((0, 4), (5, 5), (6, 8), data=b"\0" * 8), "hole", '"t1"'),
    Attack("first not at 0", several((2, 4), data=DATA), "first-not-at-zero", "byte 2"),
    Attack("trailing bytes", framed(f'{{"w":{ENTRY}}}', DATA + b"\0"), "trailing-data", '"w"'),
    Attack(
        "zip behind the data",
        framed(f'{{"w":{ENTRY}}}', DATA + b"PK\3\4evil"),
        "trailing-data",
        "Nothing may follow the data",
    ),
    Attack("no tensors", framed("{}", b""), "no-tensors", "nothing to compress", True),
    Attack("metadata alone", framed('{"__metadata__":{"format":"pt"}}', b""), "no-tensors", "", True),
    # Missing data; a test below announces the length and expects another fault.
    Attack("data cut short", framed(f'{{"w":{ENTRY}}}', b"\0"), "truncated", "3 bytes are missing"),
    Attack("no data at all", framed(f'{{"w":{ENTRY}}}', b""), "truncated", "4 bytes are missing"),
    Attack(
        "data declared beyond any disk",
        one(dtype='"U8"', shape=f"[{2**59}]", offsets=f"[0,{2**59}]"),
        "truncated",
        str(2**59 - 4),
    ),
    # Files of other formats.
    Attack(
        "zip", b"PK\3\4\x14\0\0\0\x08\x08" + b"\0" * 40, "other-format", "convert it to safetensors first"
    ),
    Attack("pickle", b"\x80\x02}q\0X\4\0\0\0aaaaq\1.", "other-format", "pickle"),
    Attack("small framed pickle", b"\x80\4\x95\1\0\0\0\0\0\0\0}\x94.", "other-format", "pickle"),
    Attack(
        "GGUF", b"GGUF\3\0\0\0" + b"\0" * 16, "other-format", "a GGUF file; convert it to safetensors first"
    ),
    Attack("HDF5", b"\x89HDF\r\n\x1a\n" + b"\0" * 16, "other-format", "HDF5"),
    Attack(
        "gzip",
        b"\x1f\x8b\x08\0\0\0\0\0\0\3" + b"\1" * 40,
        "other-format",
        "gzip-compressed data; decompress it first",
    ),
    Attack(
        "zstd",
        b"\x28\xb5\x2f\xfd\x04\0\0\0" + b"\1" * 40,
        "other-format",
        "zstd-compressed data; decompress it first",
    ),
    Attack("xz", b"\xfd7zXZ\0\0\4" + b"\1" * 40, "other-format", "xz"),
    Attack("bzip2", b"BZh91AY&SY" + b"\1" * 40, "other-format", "bzip2"),
    Attack("7z", b"7z\xbc\xaf\x27\x1c\0\4" + b"\1" * 40, "other-format", "7z"),
    Attack("npy", b"\x93NUMPY\1\0v\0" + b"\1" * 40, "other-format", "NumPy"),
    Attack("PNG", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\1" * 40, "other-format", "this is a picture (PNG)"),
    Attack("JPEG", b"\xff\xd8\xff\xe0\0\x10JFIF\0" + b"\1" * 40, "other-format", "this is a picture (JPEG)"),
    Attack("GIF", b"GIF89a\1\0\1\0" + b"\1" * 40, "other-format", "this is a picture (GIF)"),
    Attack("HTML", b"<!DOCTYPE html><title>404</title>", "other-format", "download the file again"),
    Attack("HTML after newlines", b"\n\n  <html><body>404</body></html>", "other-format", "HTML"),
    Attack("short XML", b"<Error/>", "other-format", "HTML or XML"),
    Attack(
        "git-LFS pointer",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "other-format",
        "run `git lfs pull` and send the real file",
    ),
    Attack("JSON", b'{"metadata": {"total_size": 1}}', "other-format", "JSON"),
    Attack(
        "text", b"Not found: no such model here", "other-format", "text file; convert it to safetensors first"
    ),
]


def parsed(raw: bytes, chunk_bytes: int, *, content_bytes: int | None = None):
    parser = HeaderParser(content_bytes=content_bytes)
    for at in range(0, len(raw), chunk_bytes):
        parser.feed(memoryview(raw)[at : at + chunk_bytes])
    return parser.finish(len(raw))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.label)
def test_a_bad_file_is_refused_by_its_own_name(attack, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(attack.raw)
    with pytest.raises(CheckpointError) as refused:
        read_header(path)
    assert refused.value.fault == attack.fault
    assert attack.names in refused.value.detail
    assert refused.value.detail.isprintable()
    assert str(refused.value) == refused.value.detail
    assert refused.value.pointer is None or refused.value.pointer.startswith("/")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.label)
def test_chunking_does_not_change_the_error(attack):
    # Long files would take too long in single bytes.
    for chunk_bytes in (1, 7, 1 << 20) if len(attack.raw) < 20_000 else (7, 1 << 20):
        with pytest.raises(CheckpointError) as refused:
            parsed(attack.raw, chunk_bytes)
        assert refused.value.fault == attack.fault
        assert attack.names in refused.value.detail


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.label)
def test_the_announced_length_is_checked_against_the_header(attack):
    with pytest.raises(CheckpointError) as refused:
        parsed(attack.raw, 7, content_bytes=len(attack.raw))
    assert refused.value.fault == {"truncated": "past-end"}.get(attack.fault, attack.fault)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.label)
def test_the_reference_reader_is_never_stricter(attack):
    try:
        deserialize(attack.raw)
    except (SafetensorError, OverflowError):
        accepted = False
    else:
        accepted = True
    assert accepted == attack.reference_accepts


@pytest.mark.parametrize(
    ("content_bytes", "fault"),
    [(8, "no-header"), (20, "header-past-end"), (65, "past-end"), (67, "trailing-data")],
)
def test_a_wrong_announced_length_is_refused_before_the_data_arrives(content_bytes, fault):
    raw = framed(f'{{"w":{ENTRY}}}')
    assert len(raw) == 66
    parser = HeaderParser(content_bytes=content_bytes)
    with pytest.raises(CheckpointError) as refused:
        parser.feed(raw[:62])
    assert refused.value.fault == fault


def test_bytes_after_the_data_are_refused_as_soon_as_they_arrive():
    parser = HeaderParser()
    parser.feed(framed(f'{{"w":{ENTRY}}}'))
    with pytest.raises(CheckpointError, match="more bytes follow"):
        parser.feed(b"\0")


def test_a_list_is_refused_by_its_first_character():
    parser = HeaderParser()
    parser.feed(struct.pack("<Q", 1_000_000))
    parser.feed(b" \n")
    with pytest.raises(CheckpointError) as refused:
        parser.feed(b"[")
    assert (refused.value.fault, "byte 10" in refused.value.detail) == ("not-an-object", True)


def test_too_many_tensors_are_refused():
    entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = "{" + ",".join(f'"{at:x}":{entry}' for at in range(101)) + "}"
    with pytest.raises(CheckpointError, match="more than 100 tensors") as refused:
        parse_header(header.encode(), file_bytes=8 + len(header), max_tensors=100)
    assert refused.value.fault == "too-many-tensors"
    assert len(parse_header(header.encode(), file_bytes=8 + len(header)).tensors) == 101


def test_the_limit_of_headers_is_a_parameter():
    raw = framed(f'{{"w":{ENTRY}}}')
    with pytest.raises(CheckpointError, match="at most 53 are allowed"):
        HeaderParser(max_header_bytes=53).feed(raw)
    parser = HeaderParser(max_header_bytes=54)
    parser.feed(raw)
    assert parser.finish(len(raw)).data_start == 62


def test_a_sparse_file_is_refused_by_its_size(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(one(dtype='"U8"', shape="[1000000]", offsets="[0,1000000]", data=b""))
        file.truncate(100_000)
    with pytest.raises(CheckpointError) as refused:
        read_header(path)
    assert refused.value.fault == "truncated"


def test_long_and_hostile_names_are_shortened_and_escaped():
    name = "<script>" + "x" * 900 + "\\u202e"
    with pytest.raises(CheckpointError) as refused:
        parsed(framed(f'{{"{name}":{ENTRY}}}'), 1 << 20)
    assert len(refused.value.detail) < 300
    assert "\u202e" not in refused.value.detail


def test_only_the_header_is_kept():
    header = f'{{"w":{{"dtype":"U8","shape":[{64 << 20}],"data_offsets":[0,{64 << 20}]}}}}'.encode()
    piece = bytes(1 << 20)
    parser = HeaderParser()
    tracemalloc.start()
    try:
        parser.feed(struct.pack("<Q", len(header)) + header)
        for _ in range(64):
            parser.feed(piece)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert parser.finish(8 + len(header) + (64 << 20)).tensors[0].nbytes == 64 << 20
    assert peak_bytes < 1 << 20


def test_a_json_bomb_takes_little_more_memory_than_its_text():
    header = b'{"w":{"dtype":"F32","shape":[' + b"[]," * 1_000_000 + b"[]]}}"
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            parse_header(header, file_bytes=8 + len(header))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 3 * len(header)


def test_a_pointer_escapes_tildes_and_slashes():
    with pytest.raises(CheckpointError) as refused:
        parsed(framed('{"a/b~c":{"dtype":"F99","shape":[],"data_offsets":[0,4]}}'), 1 << 20)
    assert refused.value.pointer == "/a~1b~0c/dtype"


def test_an_error_in_an_entry_has_a_pointer():
    raw = one(shape="[1,2.5]")
    with pytest.raises(CheckpointError) as refused:
        parsed(raw, 1 << 20)
    assert refused.value.pointer == "/w/shape/1"
