"""schemas/planning/difference.py: bases and layouts are checked."""

import pytest

from schemas.planning.references import BaseError
from schemas.problem import SpecError
from tests.schemas.planning.differences import MODEL, planned
from tests.schemas.planning.named import Named


@pytest.mark.parametrize(
    ("spec", "base", "pointer", "words"),
    [
        ({"layout": "factored"}, MODEL, "/layout", ["adapter", "dense"]),
        ({}, None, "/layout", ["give base"]),
        ({"method": "cur"}, MODEL, "/method", ['"cur": {"storage": "two"}']),
        ({"overrides": [{"match": "h.up", "method": "cur"}]}, MODEL, "/overrides/0/method", ["two factors"]),
        (
            {"method": "cur", "cur": {"storage": "two"}, "overrides": [{"match": "*", "cur": {}}]},
            MODEL,
            "/overrides/0/cur",
            ["two factors"],
        ),
        ({"include": ["nothing"]}, MODEL, "/include", ["No layer", "Select"]),
        ({"rank": {"ratio": 0.001}}, MODEL, "/rank", ["No layer", "larger"]),
    ],
)
def test_a_spec_that_no_adapter_can_follow_is_refused_at_its_field(spec, base, pointer, words):
    with pytest.raises(SpecError) as refusal:
        planned(base=base, **spec)

    assert refusal.value.pointer == pointer
    assert all(word in refusal.value.detail for word in words)


def without(*names):
    return tuple(tensor for tensor in MODEL if tensor.name not in names)


def with_other(name, shape, dtype="F32"):
    return tuple(Named(name, shape, dtype) if tensor.name == name else tensor for tensor in MODEL)


MANY = tuple(Named(f"extra.{i}.weight") for i in range(7))


@pytest.mark.parametrize(
    ("model", "base", "fault", "words"),
    [
        (
            MODEL,
            without("h.up.weight"),
            "other-names",
            ['1 tensor is only in the checkpoint ("h.up.weight")'],
        ),
        (without("wte.weight"), MODEL, "other-names", ['1 tensor is only in the base ("wte.weight")']),
        ((*MODEL, *MANY), MODEL, "other-names", ["7 tensors are only", '"extra.4.weight" and 2 more']),
        (
            MODEL,
            MANY,
            "other-names",
            ["4 tensors are only in the checkpoint", "7 tensors are only in the base"],
        ),
        (
            MODEL,
            with_other("wte.weight", (99, 32)),
            "other-shapes",
            ['"wte.weight" is [100, 32]', "[99, 32]"],
        ),
        (MODEL, with_other("positions", (1, 514), "I64"), "other-shapes", ['"positions"', "[1, 514]"]),
        (
            MODEL,
            with_other("wte.weight", (100, 32), "I8"),
            "other-dtypes",
            ['"wte.weight" is F32', "I8", "BF16"],
        ),
    ],
)
def test_a_base_that_does_not_fit_is_refused_by_the_names_of_its_tensors(model, base, fault, words):
    with pytest.raises(BaseError) as refusal:
        planned(model, base)

    assert refusal.value.fault == fault
    for word in words:
        assert word in refusal.value.detail


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16"])
def test_a_base_of_another_floating_dtype_fits(dtype):
    base = tuple(Named(t.name, t.shape, dtype if t.dtype == "F32" else t.dtype) for t in MODEL)

    assert planned(base=base).warnings == planned().warnings


def test_a_buffer_of_integers_that_one_of_the_two_lacks_is_a_warning():
    warning = "base: not compared, since only one of the two checkpoints has them: positions"

    assert warning in planned(base=without("positions")).warnings
    assert warning in planned(model=without("positions")).warnings
