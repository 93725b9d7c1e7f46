"""schemas/format/table.py: columns hold the same tensors as objects, in any order of arrival."""

from itertools import accumulate, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.format import table as module
from schemas.format.table import DTYPES, JoinedTensors, TableBuilder, TensorTable
from schemas.format.tensor import DTYPE_BITS, TensorInfo

BYTE_DTYPES = sorted(dtype for dtype, bits in DTYPE_BITS.items() if bits % 8 == 0)


@st.composite
def laid_out(draw) -> list[TensorInfo]:
    names = draw(st.lists(st.text("aé😀.", min_size=1, max_size=4), min_size=1, max_size=8, unique=True))
    kinds = [
        (draw(st.sampled_from(BYTE_DTYPES)), tuple(draw(st.lists(st.integers(0, 3), max_size=3))))
        for _ in names
    ]
    sizes = [TensorInfo("", dtype, shape, 0, 0).parameters * DTYPE_BITS[dtype] // 8 for dtype, shape in kinds]
    offsets = pairwise(accumulate(sizes, initial=0))
    return [
        TensorInfo(name, dtype, shape, start, end)
        for name, (dtype, shape), (start, end) in zip(names, kinds, offsets, strict=True)
    ]


def build(tensors) -> TensorTable:
    builder = TableBuilder(len(tensors))
    for info in tensors:
        builder.add(info.name, DTYPES.index(info.dtype), info.shape, info.start, info.end)
        assert builder.find(info.name) == info
    return builder.in_file_order()


@settings(deadline=None)
@given(laid_out(), st.randoms())
def test_a_table_is_the_sequence_of_its_tensors_in_the_order_of_their_data(tensors, random):
    arrived = random.sample(tensors, len(tensors))
    table = build(arrived)

    expected = sorted(arrived, key=lambda info: (info.start, info.end))
    assert [*table] == expected
    assert [table[at] for at in range(-len(table), len(table))] == [*expected, *expected]
    assert table[1:3] == tuple(expected[1:3])
    assert [*table.each_name()] == [info.name for info in expected]
    assert table.parameters == sum(info.parameters for info in tensors)
    assert table.data_bytes == tensors[-1].end
    assert TensorTable.of(expected) == table == TensorTable.of_columns(table.columns())
    assert TensorTable.of([*expected, expected[-1]]) != table


@settings(deadline=None)
@given(st.lists(laid_out(), max_size=4), st.slices(12))
def test_tables_that_are_joined_are_one_sequence(parts, part):
    joined, every = JoinedTensors(map(TensorTable.of, parts)), [info for each in parts for info in each]

    assert (len(joined), [*joined]) == (len(every), every)
    assert joined[part] == tuple(every[part])
    assert [joined[at] for at in range(len(every))] == every


def test_more_tensors_than_are_sorted_at_once_are_in_order(monkeypatch):
    monkeypatch.setattr(module, "_SORTED_AT_ONCE", 3)
    tensors = [TensorInfo(str(at), "U8", (at % 2,), at // 2, (at + 1) // 2) for at in range(20)]

    assert [info.end for info in build(tensors[::-1])] == [info.end for info in tensors]
