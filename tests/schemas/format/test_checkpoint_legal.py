"""schemas/format: every legal file is accepted, and read as the reference reader reads it."""

import json
import struct
import threading

import pytest
from safetensors import deserialize

from schemas.format import cursor, json_reader, plain
from schemas.format import header as header_module
from schemas.format.errors import CheckpointError
from schemas.format.header import parse_header, parse_tensors
from schemas.format.header_stream import HeaderParser
from schemas.format.tensor import DTYPE_BITS, FLOAT_DTYPES, TensorInfo

ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
EMPTY = '{"dtype":"U8","shape":[0],"data_offsets":[24,24]}'


def framed(header: str, data: bytes) -> bytes:
    return struct.pack("<Q", len(header.encode())) + header.encode() + data


def tensor(dtype: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def parsed(raw: bytes):
    parser = HeaderParser(content_bytes=len(raw))
    parser.feed(raw)
    return parser.finish(len(raw))


EMPTIES = {
    f"t{at}": tensor("U8", [end - start], start, end)
    for at, (start, end) in enumerate([(4, 4), (0, 4), (8, 8), (0, 0), (4, 8), (4, 4)])
}
LEGAL = {
    "leading whitespace": (f' \t\r\n{{"w":{ENTRY}}}', 4),
    "trailing whitespace": (f'{{"w":{ENTRY}}} \t\r\n', 4),
    "whitespace everywhere": (json.dumps({"__metadata__": {"a": "b"}, "w": json.loads(ENTRY)}, indent=9), 4),
    "whitespace beyond the short window": (f'{{"w":{ENTRY.replace(",", "," + " " * 2_000)}}}', 4),
    "no metadata": (f'{{"w":{ENTRY}}}', 4),
    "empty metadata": (f'{{"__metadata__":{{}},"w":{ENTRY}}}', 4),
    "metadata null": (f'{{"__metadata__":null,"w":{ENTRY}}}', 4),
    "metadata last": (f'{{"w":{ENTRY},"__metadata__":{{"a":"b"}}}}', 4),
    "large metadata": (json.dumps({"__metadata__": {"a": 'é"\n\\' * 200_000}, "w": json.loads(ENTRY)}), 4),
    "empty metadata key and value": (f'{{"__metadata__":{{"":""}},"w":{ENTRY}}}', 4),
    "control characters in metadata": (f'{{"__metadata__":{{"a":"\\u0000\\n"}},"w":{ENTRY}}}', 4),
    "escaped keys": ('{"\\u0077":{"\\u0064type":"\\u00463\\u0032","shape":[1],"data_offsets":[0,4]}}', 4),
    "a surrogate pair": (f'{{"\\ud83d\\ude00":{ENTRY}}}', 4),
    "a name of 1024 bytes": (json.dumps({"n" * 1024: json.loads(ENTRY)}), 4),
    "a path as a name": (f'{{"../../etc/passwd":{ENTRY}}}', 4),
    "an absolute path as a name": (f'{{"/etc/passwd":{ENTRY}}}', 4),
    "HTML as a name": (f'{{"<script>alert(1)</script>":{ENTRY}}}', 4),
    "rank 0": (json.dumps({"w": tensor("F64", [], 0, 8)}), 8),
    "eight dimensions": (json.dumps({"w": tensor("U8", [1] * 8, 0, 1)}), 1),
    "a zero-size dimension": (json.dumps({"w": tensor("F32", [3, 0, 2], 0, 0)}), 0),
    "zero-size dimensions of any size": (json.dumps({"w": tensor("U8", [2**63 - 1, 0], 0, 0)}), 0),
    "empty tensors anywhere": (json.dumps(EMPTIES), 8),
    "listed in another order": (json.dumps({"b": tensor("U8", [3], 2, 5), "a": tensor("U8", [2], 0, 2)}), 5),
    "offsets off the element size": (
        json.dumps({"a": tensor("U8", [1], 0, 1), "b": tensor("F32", [1], 1, 5)}),
        5,
    ),
    "four-bit floats on a byte": (json.dumps({"w": tensor("F4", [3, 2], 0, 3)}), 3),
    "six-bit floats on a byte": (json.dumps({"w": tensor("F6_E3M2", [4], 0, 3)}), 3),
} | {
    f"dtype {dtype}": (json.dumps({"w": tensor(dtype, [4], 0, bits // 2)}), bits // 2)
    for dtype, bits in DTYPE_BITS.items()
}


@pytest.mark.parametrize(("header", "data_bytes"), LEGAL.values(), ids=LEGAL.keys())
def test_a_legal_file_is_read_as_the_reference_reads_it(header, data_bytes):
    data = bytes(range(data_bytes))
    raw = framed(header, data)
    ours = parsed(raw)
    assert ours.file_bytes == len(raw)
    assert ours.metadata == (json.loads(header).get("__metadata__") or {})
    assert {
        info.name: (
            info.dtype,
            list(info.shape),
            raw[ours.data_start + info.start : ours.data_start + info.end],
        )
        for info in ours.tensors
    } == {name: (entry["dtype"], entry["shape"], bytes(entry["data"])) for name, entry in deserialize(raw)}


def test_tensors_come_in_the_order_of_their_bytes():
    header, data_bytes = LEGAL["empty tensors anywhere"]
    infos = parsed(framed(header, bytes(data_bytes))).tensors
    assert [info.name for info in infos] == ["t3", "t1", "t0", "t5", "t4", "t2"]


def test_a_tensor_has_its_parameters_and_bytes():
    (info,) = parsed(framed(json.dumps({"w": tensor("BF16", [3, 5], 0, 30)}), bytes(30))).tensors
    assert (info.parameters, info.nbytes) == (15, 30)


def test_a_scalar_has_one_parameter_and_an_empty_tensor_none():
    header = json.dumps({"s": tensor("F32", [], 0, 4), "z": tensor("F32", [0, 7], 4, 4)})
    assert [info.parameters for info in parsed(framed(header, bytes(4))).tensors] == [1, 0]


def test_the_dtypes_that_are_factored_are_known_dtypes():
    assert FLOAT_DTYPES.issubset(DTYPE_BITS)


def test_a_streamed_header_is_the_parsed_header():
    header = json.dumps({"__metadata__": {"a": "é"}, "w": tensor("F32", [2], 0, 8)}, ensure_ascii=False)
    raw = framed(header, bytes(8))
    parser = HeaderParser()
    for at in range(len(raw)):
        parser.feed(raw[at : at + 1])
        assert (parser.header is None) == (at + 1 < len(raw) - 8)
    assert parser.finish(len(raw)) == parse_header(header.encode(), file_bytes=len(raw))


def test_a_header_is_read_on_a_small_stack():
    faults: list[str] = []

    def attack() -> None:
        try:
            parse_header(b'{"w":' + b"[" * 60_000, file_bytes=100_000)
        except CheckpointError as error:
            faults.append(error.fault)

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=attack)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert faults == ["nested-too-deep"]


def spaced(entries: int, *, spaces: int, every: int) -> bytes:
    """Make a header with so many spaces inside every n-th entry."""
    pads = ("" if at % every else " " * spaces for at in range(entries))
    texts = (
        f'"{at}":{{"dtype":"U8",{pad}"shape":[1],"data_offsets":[{at},{at + 1}]}}'
        for at, pad in enumerate(pads)
    )
    return ("{" + ",".join(texts) + "}").encode()


def looked_at(header: bytes, monkeypatch) -> int:
    """Return how many characters are decoded, gone through for an end, or joined, some of them repeatedly."""
    counted = 0

    def counting(function, length):
        def call(*args):
            nonlocal counted
            found = function(*args)
            counted += length(found, *args)
            return found

        return call

    def to_end(end, text, begin):
        return (len(text) if end is None else min(end, len(text))) - begin

    with monkeypatch.context() as patch:
        patch.setattr(json_reader, "_decode", counting(json_reader._decode, lambda _, piece: len(piece)))
        patch.setattr(json_reader, "_value_end", counting(json_reader._value_end, to_end))
        joined = counting(cursor.Cursor.fill, lambda changed, reader, _: changed * len(reader.text))
        patch.setattr(cursor.Cursor, "fill", joined)
        assert parse_tensors(header).tensors
    return counted


@pytest.mark.parametrize("is_plain", [True, False], ids=["by pattern", "by decoder"])
@pytest.mark.parametrize(("spaces", "every"), [(0, 1), (600, 9), (600, 1), (60_000, 9), (500, 1)])
def test_each_character_is_looked_at_a_few_times_however_many_spaces_there_are(
    spaces, every, is_plain, monkeypatch
):
    header = spaced(min(10_000, 2_000_000 * every // max(spaces, 1)), spaces=spaces, every=every)
    if not is_plain:
        monkeypatch.setattr(header_module, "read_plain_tensors", lambda *_: None)
    # A reader that looks at all that may follow each entry does so hundreds of times.
    assert looked_at(header, monkeypatch) < 16 * len(header)


@pytest.mark.parametrize(
    "entry",
    [
        '{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}',
        '{"data_offsets":[0,24],"dtype":"F32","shape":[2,3]}',
        '{ "shape" : [ 2 , 3 ] ,\n"data_offsets" : [ 0 , 24 ] , "dtype" : "F32" }',
        '{"dtyp\\u0065":"F32","shape":[2,3],"data_offsets":[0,24]}',
        '{"dtype":"F\\u00332","shape":[2,3],"data_offsets":[0,24]}',
    ],
)
def test_an_entry_means_the_same_however_it_is_written(entry):
    header = parse_tensors(f'{{"w":{entry},"e":{EMPTY}}}'.encode())
    assert header.tensors[0] == TensorInfo("w", "F32", (2, 3), 0, 24)
    # What follows the first may be read in a shorter way.
    assert parse_tensors(f'{{"e":{EMPTY} ,\n"w" : {entry}}}'.encode()).tensors == header.tensors


def test_a_long_header_means_the_same_wherever_it_is_cut(monkeypatch):
    names = [rf"é\u0061😀{at}" if at % 3 else f"plain.name.{at}" for at in range(200)]
    entries = [
        f'"{name}": {{"dtype":"U8","shape":[1],{" " * (at % 7)}"data_offsets":[{at},{at + 1}]}}'
        for at, name in enumerate(names)
    ]
    entries.insert(99, f'"__metadata__":{{"long":"{"é😀x" * 99}","short":"\\n"}}')
    raw = ("{" + " , \n ".join(entries) + "}  ").encode()
    whole = parse_tensors(raw)

    assert len(whole.tensors) == 200
    monkeypatch.setattr(plain, "LONG_CHARACTERS", 200)
    monkeypatch.setattr(json_reader, "LONG_CHARACTERS", 200)
    for piece_bytes in (1, 2, 3, 61, 1000):
        monkeypatch.setattr(cursor, "PIECE_BYTES", piece_bytes)
        assert parse_tensors(raw) == whole
        with pytest.raises(CheckpointError, match=f"byte {8 + len(raw) - 1} ") as cut:
            parse_tensors(raw[:-3] + b", ")
        assert cut.value.fault == "truncated-json"
