"""schemas/format/model_config.py: layers that only config.json lists are known as factored."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.format.companion import (
    BYTES_PER_CONFIG_VALUE,
    FREE_CONFIG_VALUES,
    MAX_CONFIG_DEPTH,
    parse_config,
)
from schemas.format.errors import CheckpointError
from schemas.format.files import CheckpointFiles
from schemas.format.metadata import FactoredLayer, factored_layers, with_factored
from schemas.format.model_config import quantization_config, with_layers_of
from tests.schemas.format.checkpoints import header_of

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.dictionaries(st.text(), st.recursive(LEAVES, st.lists))
SVD = {"method": "svd", "rank": 4, "shape": [8, 6]}
FACTORS = {"a.0.weight": (4, 6), "a.1.weight": (8, 4), "norm.weight": (8,)}


def config_with(layers, **changes):
    return {"quantization_config": {"quant_method": "eckart", "version": 1, "layers": layers, **changes}}


def factored_in(config, *shards, metadata=None):
    headers = {f"{number}.safetensors": header_of(s, "F16", metadata) for number, s in enumerate(shards)}
    return [factored_layers(header.metadata) for header in with_layers_of(config, headers).values()]


def test_a_layer_is_listed_by_the_file_that_holds_its_first_factor():
    other = {"b.0.weight": (4, 6), "b.1.weight": (8, 4)}
    first, second = factored_in(config_with({"a": SVD, "b": SVD | {"transposed": True}}), FACTORS, other)

    assert first == {"a": FactoredLayer(method="svd", rank=4, shape=(8, 6), dtype="F16")}
    assert second == {"b": FactoredLayer(method="svd", rank=4, shape=(8, 6), dtype="F16", transposed=True)}


def test_what_a_job_writes_is_read_again():
    layer = FactoredLayer(
        method="cur", rank=4, shape=(8, 6), dtype="F16", weight_dtype="F32", relative_error=0.5
    )
    config = {"quantization_config": quantization_config({"a": layer})}

    assert factored_in(config, FACTORS) == [{"a": layer.model_copy(update={"relative_error": None})}]


def test_what_the_files_say_themselves_counts_more():
    own = FactoredLayer(method="cur", rank=4, shape=(8, 6), dtype="F32", relative_error=0.25)
    header = header_of(FACTORS, metadata=with_factored({"note": "mine"}, {"a": own}))
    after = with_layers_of(config_with({"a": SVD}), {"x": header})

    assert after == {"x": header}
    assert CheckpointFiles(after).factored == {"a"}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"quantization_config": None},
        {"quantization_config": {"quant_method": "fp8", "layers": {"a": SVD}}},
        config_with({"a": SVD}, version=2),
        config_with(["a"]),
        config_with({"a": "svd"}),
        config_with({"a": SVD | {"rank": -1}}),
        config_with({"absent": SVD, "norm": SVD}),
    ],
)
def test_a_config_that_lists_none_of_the_files_layers_changes_nothing(config):
    assert factored_in(config, FACTORS) == [{}]


def test_a_config_may_have_as_many_values_as_its_bytes_allow():
    layers = {f"model.layers.{at}.mlp.experts.{at}.gate_proj": SVD for at in range(5000)}
    text = json.dumps(config_with(layers), indent=2).encode()
    assert parse_config(text) == json.loads(text)

    short = b'{"a":[' + b"1," * (FREE_CONFIG_VALUES + 9_999) + b"1]}"
    assert (
        len(parse_config(short + b" " * 10_000 * BYTES_PER_CONFIG_VALUE)["a"]) == FREE_CONFIG_VALUES + 10_000
    )
    with pytest.raises(CheckpointError, match=r"more than .* values in"):
        parse_config(short)


@settings(deadline=None)
@given(st.text('{}[]",:1e.-NaI \n\\u\ufeff\0é', max_size=12) | VALUES.map(json.dumps))
@example("[" * 100_000)
@example('{"a":' * 100 + "1" + "}" * 100)
@example('{"a": NaN, "a": 1, "b": ' + "9" * 5000 + "}")
def test_a_config_is_read_as_the_librarys_own_decoder_reads_it(text):
    try:
        expected = json.loads(text.encode())
    except (ValueError, RecursionError):
        expected = None
    try:
        found = parse_config(text.encode())
    except CheckpointError:
        # Nested deeper than the models' own libraries need, too.
        assert not isinstance(expected, dict) or text.count("{") > MAX_CONFIG_DEPTH
    else:
        assert repr(found) == repr(expected)


def test_a_weight_that_is_there_dense_is_not_factored():
    assert factored_in(config_with({"a": SVD}), {**FACTORS, "a.weight": (8, 6)}) == [{}]
