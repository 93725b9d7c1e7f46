"""schemas/format/index.py: an index is checked on its own, and then against its shards."""

import json

import pytest

from schemas.format.errors import CheckpointError
from schemas.format.header import Header
from schemas.format.index import build_index, check_shards, index_warnings, parse_index
from schemas.format.table import TensorTable
from schemas.format.tensor import TensorInfo

MAP = {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}


def index(weight_map=MAP, **metadata) -> bytes:
    return json.dumps({"metadata": metadata, "weight_map": weight_map}).encode()


def naming(shard: str) -> bytes:
    return index({"w": shard})


def test_an_index_gives_its_map_its_metadata_and_its_shards_sorted():
    found = parse_index(
        index({"z": "b.safetensors", "y": "a.safetensors", "x": "b.safetensors"}, total_size=8, note=[1.5])
    )
    assert list(found.weight_map) == ["z", "y", "x"]
    assert found.metadata == {"total_size": 8, "note": [1.5]}
    assert found.shards == ("a.safetensors", "b.safetensors")


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps({"weight_map": MAP}).encode(),
        json.dumps({"weight_map": MAP, "metadata": {}}, indent=2).encode(),
        b"\n" + index(total_size=4.0, nested={"a": [None, True, {"b": "\u00e9"}]}) + b"\n",
        json.dumps({"metadata": None, "weight_map": MAP}).encode(),
        json.dumps({"format": "safetensors", "weight_map": MAP, "extra": {"a": [1.5, None]}}).encode(),
    ],
    ids=["without metadata", "metadata last", "any JSON as metadata", "metadata null", "further keys"],
)
def test_a_legal_index_is_accepted(raw):
    assert parse_index(raw).weight_map == MAP


def test_a_rewritten_index_keeps_what_the_old_one_said_beside_its_totals():
    old = {
        "format": "safetensors",
        "metadata": {"total_size": "many", "note": 1},
        "weight_map": MAP,
        "x": [None],
    }
    source = parse_index(json.dumps(old).encode())

    new = build_index({"a": "a.safetensors"}, source=source, total_size_bytes=8, total_parameters=2)

    assert json.loads(new) == {
        "metadata": {"total_size": 8, "note": 1},
        "weight_map": {"a": "a.safetensors"},
        "format": "safetensors",
        "x": [None],
    }
    assert parse_index(new).extra == source.extra


REFUSALS = {
    "empty": (b"", "truncated-json", "byte 0"),
    "not UTF-8": (b'{"\xff":1}', "not-utf8", "byte 2"),
    "byte order mark": (b"\xef\xbb\xbf{}", "byte-order-mark", "byte 0"),
    "array": (b"[]", "not-an-object", "object"),
    "null": (b"null", "not-an-object", "object"),
    "not JSON": (b"weights", "not-json", '"w"'),
    "cut": (index()[:-1], "truncated-json", "ends"),
    "two objects": (index() + b"{}", "trailing-json", '"{"'),
    "NaN": (b'{"metadata":{"a":NaN},"weight_map":{}}', "loose-json", "NaN"),
    "overflowing float": (b'{"metadata":{"a":1e999},"weight_map":{}}', "integer-too-large", "1e999"),
    "huge integer": (b'{"metadata":{"a":%s},"weight_map":{}}' % (b"9" * 5000), "integer-too-large", "999"),
    "lone surrogate in metadata": (b'{"metadata":{"a":"\\ud800"}}', "lone-surrogate", "\\ud800"),
    "lone surrogate as a metadata key": (b'{"metadata":{"\\ud800":1}}', "lone-surrogate", "\\ud800"),
    "nesting bomb": (b'{"metadata":' + b'{"a":' * 20_000, "nested-too-deep", ""),
    "deep metadata": (
        b'{"metadata":{"a":' + b"[" * 20 + b"]" * 20 + b'},"weight_map":{}}',
        "nested-too-deep",
        "16",
    ),
    "long metadata": (index(note="x" * 70_000), "value-too-long", "65536"),
    "metadata a word": (b'{"metadata":none,"weight_map":{}}', "not-json", '"n"'),
    "metadata a list": (b'{"metadata":[],"weight_map":{}}', "metadata-not-object", "object"),
    "metadata key twice": (b'{"metadata":{"a":1,"a":1},"weight_map":{}}', "duplicate-key", "metadata"),
    "weight_map twice": (
        b'{"weight_map":{"a":"a.safetensors"},"weight_map":{}}',
        "duplicate-key",
        '"weight_map"',
    ),
    "no weight_map": (b'{"metadata":{}}', "missing-key", "weight_map"),
    "empty weight_map": (index({}), "no-tensors", "nothing to compress"),
    "unknown key twice": (
        b'{"format":1,"format":1,"weight_map":{"a":"a.safetensors"}}',
        "duplicate-key",
        '"format"',
    ),
    "NaN in an unknown key": (b'{"note":[NaN],"weight_map":{"a":"a.safetensors"}}', "loose-json", "NaN"),
    "deep unknown key": (b'{"note":' + b"[" * 20 + b"]" * 20 + b"}", "nested-too-deep", "note"),
    "nesting bomb in an unknown key": (b'{"note":' + b"[" * 20_000, "nested-too-deep", ""),
    "many unknown keys": (
        b"{%s}" % b",".join(b'"%d":[%s]' % (key, b"[]," * 100 + b"[]") for key in range(300)),
        "value-too-long",
        "65536",
    ),
    "lone surrogate as a key": (b'{"\\ud800":1}', "lone-surrogate", "\\ud800"),
    "huge integer in an unknown key": (b'{"n":%s}' % (b"9" * 5000), "integer-too-large", "999"),
    "weight_map a list": (b'{"weight_map":["a"]}', "weight-map-not-strings", "weight_map"),
    "weight_map of numbers": (index({"w": 1}), "weight-map-not-strings", '"w"'),
    "weight_map of null": (index({"w": None}), "weight-map-not-strings", '"w"'),
    "tensor twice": (b'{"weight_map":{"w":"a.safetensors","w":"b.safetensors"}}', "duplicate-name", '"w"'),
    "empty name": (index({"": "a.safetensors"}), "empty-name", "empty"),
    "control character in a name": (index({"a\nb": "a.safetensors"}), "control-character", "U+000A"),
    "parent directory": (naming("../model.safetensors"), "shard-path", "without a path"),
    "hidden parent directory": (naming("a/../../model.safetensors"), "shard-path", "without a path"),
    "subdirectory": (naming("shards/model.safetensors"), "shard-path", "without a path"),
    "absolute": (naming("/etc/model.safetensors"), "shard-path", "/etc"),
    "drive": (naming("C:model.safetensors"), "shard-path", "C:"),
    "drive and backslash": (naming("C:\\model.safetensors"), "shard-path", "C:"),
    "backslash": (naming("..\\model.safetensors"), "shard-path", "without a path"),
    "UNC": (naming("\\\\host\\share\\model.safetensors"), "shard-path", "without a path"),
    "URL": (naming("file:///model.safetensors"), "shard-path", "file:"),
    "home": (naming("~model.safetensors"), "shard-path", "~model"),
    "dots alone": (naming(".."), "shard-path", '".."'),
    "pickle shard": (naming("pytorch_model-00001-of-00002.bin"), "shard-extension", ".bin"),
    "index as a shard": (naming("model.safetensors.index.json"), "shard-extension", ".index.json"),
    "extension in capitals": (naming("model.SAFETENSORS"), "shard-extension", "SAFETENSORS"),
    "newline behind the extension": (naming("model.safetensors\n"), "shard-extension", "\\n"),
    "NUL before the extension": (naming("model\0.safetensors"), "shard-name", "\\u0000"),
    "hidden file": (naming(".safetensors"), "shard-name", '".safetensors"'),
    "space": (naming("my model.safetensors"), "shard-name", "my model"),
    "long name": (naming("m" * 117 + ".safetensors"), "shard-name", "128"),
    "empty shard name": (naming(""), "shard-extension", '""'),
}


@pytest.mark.parametrize(("raw", "fault", "names"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_bad_index_is_refused_by_its_own_name(raw, fault, names):
    with pytest.raises(CheckpointError) as refused:
        parse_index(raw)
    assert refused.value.fault == fault
    assert names in refused.value.detail
    assert refused.value.detail.isprintable()


def test_an_index_over_the_cap_is_refused_unread():
    with pytest.raises(CheckpointError, match="at most 100 are allowed") as refused:
        parse_index(b"[" * 101, max_index_bytes=100)
    assert refused.value.fault == "index-too-large"


@pytest.mark.parametrize(
    ("weight_map", "is_refused"),
    [
        ({str(at): f"{at % 2}.safetensors" for at in range(4)}, False),
        ({str(at): f"{at % 2}.safetensors" for at in range(5)}, True),
        ({str(at): f"{at}.safetensors" for at in range(2)}, False),
        ({str(at): f"{at}.safetensors" for at in range(3)}, True),
    ],
)
def test_an_index_names_no_more_tensors_and_files_than_a_checkpoint_may_have(
    monkeypatch, weight_map, is_refused
):
    monkeypatch.setattr("schemas.format.index.MAX_TENSORS", 4)
    monkeypatch.setattr("schemas.format.plain.MAX_TENSORS", 4)
    monkeypatch.setattr("schemas.format.index.MAX_SHARDS", 2)
    raw = json.dumps({"weight_map": weight_map}).encode()
    if not is_refused:
        assert parse_index(raw).weight_map == weight_map
        return
    with pytest.raises(CheckpointError, match="more than 4 tensors or 2 files") as refused:
        parse_index(raw)
    assert refused.value.fault == "too-many-tensors"


def header(*names: str, nbytes: int = 4) -> Header:
    infos = tuple(
        TensorInfo(name, "U8", (nbytes,), at * nbytes, (at + 1) * nbytes) for at, name in enumerate(names)
    )
    return Header({}, TensorTable.of(infos), 64, 64 + len(names) * nbytes)


ONE, TWO = MAP.values()
HEADERS = {ONE: header("a.weight"), TWO: header("b.weight")}


@pytest.mark.parametrize("metadata", [{}, {"total_size": 8}, {"total_size": 8.0}, {"total_parameters": 1}])
def test_shards_that_agree_with_the_index_are_accepted(metadata):
    found = parse_index(index(**metadata))

    check_shards(found, HEADERS)
    assert index_warnings(found, 8) == ()


@pytest.mark.parametrize("total", [9, 2, 0, -1, 8.5, "8", True, [8], {"bytes": 8}])
def test_a_total_that_is_wrong_is_accepted_with_a_warning(total):
    """Writers put the number of tensors or parameters there, or count a tie twice; no loader reads it."""
    found = parse_index(index(total_size=total))

    check_shards(found, HEADERS)
    (warning,) = index_warnings(found, 8)
    assert "take 8 bytes" in warning
    assert str(total)[:2] in warning


DISAGREEMENTS = {
    "shard missing": (index(), {ONE: HEADERS[ONE]}, "shard-missing", TWO),
    "shard extra": (index(), HEADERS | {"more.safetensors": header("c")}, "shard-extra", "more.safetensors"),
    "tensor missing": (index(MAP | {"c.weight": TWO}), HEADERS, "tensor-missing", '"c.weight"'),
    "tensor extra": (index(), HEADERS | {TWO: header("b.weight", "c.bias")}, "tensor-extra", '"c.bias"'),
    "tensor in the other shard": (
        index(),
        {ONE: header("b.weight"), TWO: header("a.weight")},
        "tensor-in-other-shard",
        ONE,
    ),
    "tensor in two shards": (
        index(),
        HEADERS | {TWO: header("b.weight", "a.weight")},
        "tensor-in-two-shards",
        '"a.weight"',
    ),
}


@pytest.mark.parametrize(
    ("raw", "headers", "fault", "names"), DISAGREEMENTS.values(), ids=DISAGREEMENTS.keys()
)
def test_shards_that_disagree_with_the_index_are_refused(raw, headers, fault, names):
    found = parse_index(raw)
    with pytest.raises(CheckpointError) as refused:
        check_shards(found, headers)
    assert refused.value.fault == fault
    assert names in refused.value.detail
