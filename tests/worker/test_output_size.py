"""schemas/planning/output.py and worker/output.py: the predicted size is that of the written files."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from schemas.format.files import open_checkpoint
from schemas.planning.output import LONGEST_ERROR, output_bytes
from schemas.planning.planner import make_plan
from schemas.spec import CompressionSpec

ERROR_CHARACTERS = 24


def predicted(source, result, **spec):
    """Predict the bytes of a result from its input's headers and its ranks."""
    checkpoint = open_checkpoint(source)
    files = checkpoint
    plan = make_plan(checkpoint.tensors, CompressionSpec.model_validate({"rank": {"ratio": 0.5}} | spec))
    ranks = {i: layer.rank for i, layer in enumerate(result.report.layers) if layer.rank is not None}
    return output_bytes(files, plan.layers, ranks)


def assert_predicted(source, result, **spec):
    slack = predicted(source, result, **spec) - sum(file.size_bytes for file in result.report.output.files)
    assert (
        0
        <= slack
        <= ERROR_CHARACTERS * result.report.totals.layers_factored + 8 * len(result.report.output.files)
    )


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"method": "cur"},
        {"method": "cur", "cur": {"storage": "two"}, "dtype": "float16"},
        {"method": "cx", "dtype": "bfloat16", "layout": "dense"},
        {"rank": 3, "dtype": "float32"},
        {"exclude": ["*"]},
        {"rank": 2**20},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_size_of_a_file_is_known_from_its_ranks(save, gaussian, compress, spec, dtype):
    source = save(
        {
            "a.weight": gaussian(40, 60, dtype=dtype),
            "a.bias": gaussian(40, dtype=dtype),
            "odd": torch.zeros(3, dtype=torch.uint8),
            "é.weight": gaussian(33, 21),
            'quo"ted\\.weight': gaussian(33, 21),
            "steps": torch.tensor(7),
        },
        metadata={"format": "pt", "note": 'é "quoted" \\'},
    )

    assert_predicted(source, compress(source, **spec), **spec)


def test_the_size_of_shards_and_their_index_is_known_from_the_ranks(save_sharded, gaussian, compress):
    shards = [
        {f"layer.{i}.weight": gaussian(32, 48, dtype=torch.bfloat16), f"layer.{1 - i}.bias": gaussian(32)}
        for i in range(2)
    ]
    source = save_sharded(shards, total_parameters=3136, note="é")

    assert_predicted(source, compress(source))


def test_a_checkpoint_that_is_compressed_again_keeps_its_metadata(save, gaussian, compress):
    first = compress(save({"a.weight": gaussian(40, 60), "b.weight": gaussian(60, 40)}), exclude=["b"])
    source = first.directory / "model.safetensors"
    again = compress(source, rank=5)
    plain = make_plan(open_checkpoint(source).tensors, CompressionSpec(rank=5), factored={"a"})
    files = open_checkpoint(source)
    slack = output_bytes(files, plain.layers, {0: 5}) - again.report.output.bytes

    assert [layer.name for layer in again.report.layers] == ["b"]
    assert 0 <= slack <= ERROR_CHARACTERS + 8


class Number(BaseModel):
    value: float


@given(st.floats(0, allow_infinity=False))
@settings(max_examples=500)
def test_no_error_takes_more_characters_than_the_longest(error):
    assert len(Number(value=error).model_dump_json()) <= len(Number(value=LONGEST_ERROR).model_dump_json())
