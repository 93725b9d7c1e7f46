"""schemas/planning/layers.py: layers in columns are the layers that were put in, at little memory."""

import tracemalloc
from dataclasses import replace

import pytest

from schemas.format.table import JoinedTensors, TensorTable
from schemas.format.tensor import TensorInfo
from schemas.planning.documents import plan_document, plan_text
from schemas.planning.layers import Layers
from schemas.planning.planner import make_plan, would_be_factored
from schemas.spec import CompressionSpec
from tests.schemas.planning.named import Named, planned

MODEL = [
    Named("embed.weight", (300, 40)),
    *(Named(f"h.{number}.\u00e9\U0001f600.weight", (64, 64 + 8 * (number % 3))) for number in range(9)),
    *(Named(f"h.{number}.bias", (64,)) for number in range(9)),
    Named("conv.weight", (4, 4, 3, 3)),
]


def test_columns_hold_what_was_put_in():
    layers = planned(MODEL, exclude=[]).layers
    assert isinstance(layers, Layers)
    as_tuple = tuple(layers)
    assert [layer.name for layer in as_tuple] == [name for name, _ in layers.named()]
    assert layers == Layers.of(as_tuple) == as_tuple
    assert layers[1:3] == as_tuple[1:3]
    assert layers[-1] == as_tuple[-1]
    assert layers != as_tuple[1:]
    assert layers != (*as_tuple[:-1], replace(as_tuple[-1], rank=1))
    assert sum(count for _, count in layers.counted()) == len(layers) == len(as_tuple)
    with pytest.raises(IndexError):
        layers[len(layers)]


@pytest.mark.parametrize(
    "spec",
    [
        {"rank": 8},
        {"rank": {"energy": 0.9}, "exclude": []},
        {"rank": {"budget": 0.5}, "exclude": ["h.3.*"]},
        {"method": "int8", "layout": "factored"},
        {"rank": 4, "overrides": [{"match": "h.1.*", "rank": {"ratio": 0.01}}]},
        {"rank": 4, "include": ["nothing"]},
    ],
)
def test_the_text_of_a_plan_is_its_document(spec):
    plan = planned(MODEL, **spec)
    for each in (plan, replace(plan, layers=tuple(plan.layers))):
        assert "".join(plan_text("m", each)) == plan_document("m", each).model_dump_json()


def test_very_many_layers_take_little_memory():
    layers = 3000
    table = TensorTable.of(
        TensorInfo(f"h.{number}.weight", "F32", (64, 64), 64**2 * 4 * number, 64**2 * 4 * (number + 1))
        for number in range(layers)
    )
    tracemalloc.start()
    try:
        texts = plan_text("m", make_plan(JoinedTensors([table]), CompressionSpec(rank=1)))
        assert sum(map(len, texts)) > 300 * layers
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # An object for each layer and one for each row of the document take five times as much.
    assert peak < 700 * layers


def test_tensors_that_are_no_layers_take_no_memory():
    table = TensorTable.of(TensorInfo(f"{number}", "U8", (0,), 0, 0) for number in range(20_000))
    tensors = JoinedTensors([table])
    spec = CompressionSpec(rank=1)
    tracemalloc.start()
    try:
        assert would_be_factored(tensors[:10], tensors, spec) == frozenset()
        plan = make_plan(tensors, spec)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert plan.unselected["vector"].tensors == 20_000
    assert peak < 200_000
