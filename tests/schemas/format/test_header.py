"""schemas/format/header.py: the output order aligns every tensor. Parsing is in test_checkpoint_*.py."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.format.header import NewTensor, aligned_order
from schemas.format.tensor import DTYPE_BITS, alignment_bytes

BYTE_DTYPES = sorted(dtype for dtype, bits in DTYPE_BITS.items() if bits >= 8)


@given(st.lists(st.tuples(st.sampled_from(BYTE_DTYPES), st.integers(0, 9)), max_size=8))
@settings(deadline=None)
def test_an_aligned_order_is_aligned_stable_and_idempotent(drawn):
    given = [NewTensor(str(at), dtype, (size,)) for at, (dtype, size) in enumerate(drawn)]
    ordered = aligned_order(given)
    start = 0
    for tensor in ordered:
        assert start % alignment_bytes(tensor.dtype) == 0
        start += tensor.nbytes
    assert sorted(ordered, key=lambda tensor: int(tensor.name)) == given
    for dtype in DTYPE_BITS:
        names = [int(tensor.name) for tensor in ordered if tensor.dtype == dtype]
        assert names == sorted(names)
    assert aligned_order(ordered) == ordered


def test_an_unknown_dtype_is_refused():
    with pytest.raises(KeyError, match="F128"):
        aligned_order([NewTensor("w", "F128", (2,))])
