"""The plan of one layer: schemas/planning/layer.py."""

import pytest

from schemas.planning.codecs import FLOAT_CODECS
from schemas.planning.forms import FORMS, FormOptions
from schemas.planning.layer import LayerPlan


@pytest.mark.parametrize("codec", FLOAT_CODECS.values(), ids=lambda codec: codec.name)
@pytest.mark.parametrize("storage", ["three", "two"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dense_layout", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_bytes_at_a_rank_are_those_of_the_stored_tensors(codec, storage, form, dense_layout, transposed):
    layer = LayerPlan(
        name="a",
        rows=40,
        columns=60,
        dtype="F32",
        form=FORMS[form].of(FormOptions(storage=storage)),
        codec=codec,
        dense_layout=dense_layout,
        rank=None,
        reason=None,
        transposed=transposed,
    )

    for rank in layer.ranks:
        assert layer.bytes_after(rank) == sum(tensor.nbytes for tensor in layer.stored_tensors(rank))
