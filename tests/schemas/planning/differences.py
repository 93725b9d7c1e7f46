"""A model, and plans of its difference to a base."""

from schemas.planning.planner import make_plan
from schemas.spec import CompressionSpec
from tests.schemas.planning.named import Named

MODEL = (
    Named("h.up.weight", (96, 32)),
    Named("h.down.weight", (32, 96)),
    Named("h.down.bias", (32,)),
    Named("wte.weight", (100, 32)),
    Named("positions", (1, 512), "I64"),
)


def planned(model=MODEL, base=MODEL, **spec):
    spec = CompressionSpec.model_validate({"rank": 4, "layout": "adapter"} | spec)
    return make_plan(model, spec, base=base)
