"""Difference jobs: a fine-tuned checkpoint minus its base, which must have the same tensors."""

from collections.abc import Iterable, Iterator, Sequence

from schemas.format.errors import listed, quoted
from schemas.format.tensor import DTYPE_BITS, FLOAT_DTYPES
from schemas.planning.forms import Chain
from schemas.planning.layer import LayerPlan, Tensor
from schemas.planning.references import BaseError
from schemas.problem import SpecError
from schemas.report import KeptReason
from schemas.spec import CompressionSpec, RankRule

# Counters and positions, which some libraries store and others do not.
INTEGER_DTYPES = frozenset(dtype for dtype in DTYPE_BITS if dtype == "BOOL" or dtype[0] in "UI")


def check_layout(spec: CompressionSpec, *, has_base: bool) -> None:
    """Refuse a layout that cannot hold a difference, and one that holds nothing else without a base."""
    if has_base and spec.layout == "factored":
        raise SpecError(
            "/layout",
            "With a base, give the layout `adapter`, a LoRA adapter of the difference, or `dense`, the base "
            "plus the difference of low rank.",
        )
    if spec.layout == "adapter" and not has_base:
        raise SpecError(
            "/layout",
            "An adapter holds the difference to another checkpoint: give base, the id of the stored "
            "checkpoint that this one was fine-tuned from, or another layout.",
        )


def check_adapter(layers: Sequence[LayerPlan], pointers: Sequence[str]) -> None:
    """Refuse forms that do not store two factors, and an adapter without any layer.

    `pointers` are the fields of the spec that chose each layer's form.
    """
    for layer, pointer in zip(layers, pointers, strict=True):
        if layer.in_adapter and not (isinstance(layer.form, Chain) and layer.form.num_factors == 2):
            hint = ' Give "cur": {"storage": "two"}.' if layer.form.name == "cur" else " Give svd or cx."
            raise SpecError(
                pointer,
                f"An adapter has two factors for each layer, but {layer.form.name} stores others.{hint}",
            )
    if not any(layer.reason is None for layer in layers):
        raise SpecError(
            "/rank" if layers else "/include",
            "No layer would be in the adapter. "
            + ("Give a larger rank or ratio." if layers else "Select at least one weight that differs."),
        )


def check_base(tensors: Sequence[Tensor], base: Sequence[Tensor]) -> tuple[str, ...]:
    """Check that a base has the tensors of the checkpoint, by name and shape, and return warnings.

    Raises
    ------
    BaseError
        If it does not; the error names them.
    """
    mine, theirs = ({tensor.name: tensor for tensor in several} for several in (tensors, base))
    extra = [mine[name] for name in mine if name not in theirs]
    lacking = [theirs[name] for name in theirs if name not in mine]
    _check_names(_names(extra, floating=True), _names(lacking, floating=True))
    both = [(tensor, theirs[name]) for name, tensor in mine.items() if name in theirs]
    _check_shapes(both)
    _check_dtypes(both)
    uncompared = [*_names(extra, floating=False), *_names(lacking, floating=False)]
    if not uncompared:
        return ()
    return (f"base: not compared, since only one of the two checkpoints has them: {listed(uncompared)}",)


def _names(tensors: Iterable[Tensor], *, floating: bool) -> list[str]:
    return [tensor.name for tensor in tensors if (tensor.dtype not in INTEGER_DTYPES) is floating]


def _check_names(extra: Sequence[str], lacking: Sequence[str]) -> None:
    parts = [
        f"{len(names)} tensor{'s are' if len(names) > 1 else ' is'} only in the {where} ({_quoted(names)})"
        for names, where in ((extra, "checkpoint"), (lacking, "base"))
        if names
    ]
    if parts:
        raise BaseError(
            "other-names",
            f"The base and the checkpoint have other names: {', and '.join(parts)}. Give the model that this "
            "one was fine-tuned from, saved by the same class.",
        )


def _check_shapes(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    others = [
        f"{quoted(tensor.name)} is {list(tensor.shape)}, and in the base {list(base.shape)}"
        for tensor, base in pairs
        if tensor.shape != base.shape
    ]
    if others:
        raise BaseError(
            "other-shapes",
            f"The base has other shapes for {len(others)} tensor{'s' if len(others) > 1 else ''}: "
            f"{listed(others)}. Give the model that this one was fine-tuned from.",
        )


def _check_dtypes(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    others = [
        f"{quoted(tensor.name)} is {tensor.dtype}, and in the base {base.dtype}"
        for tensor, base in pairs
        if tensor.dtype != base.dtype and not {tensor.dtype, base.dtype} <= FLOAT_DTYPES
    ]
    if others:
        raise BaseError(
            "other-dtypes",
            f"The base has dtypes that cannot be subtracted for {len(others)} "
            f"tensor{'s' if len(others) > 1 else ''}: {listed(others)}. "
            f"Give it in one of {', '.join(sorted(FLOAT_DTYPES))}.",
        )


def _quoted(names: Sequence[str]) -> str:
    return listed([quoted(name) for name in names])


def adapter_rank(layer: LayerPlan, rank: int | RankRule) -> tuple[int | RankRule | None, KeptReason | None]:
    """Resolve a rank that depends on the shape alone, for a layer of an adapter.

    An adapter cannot hold a dense difference. So the largest rank is the full rank, which needs more
    parameters and has no error; `align` does not restrict it.
    """
    if layer.largest_rank == 0:
        return None, "unchanged"
    least = -(-layer.min_rank // layer.align) * layer.align
    if isinstance(rank, int):
        return min(layer.largest_rank, max(least, -(-rank // layer.align) * layer.align)), None
    if rank.ratio is None:
        return rank, None
    most = layer.ratio_rank(rank.ratio)
    most -= most % layer.align
    return (most, None) if most >= least else (None, "rank_zero")


def adapter_ranks(layer: LayerPlan) -> Iterator[int]:
    """Yield the ranks that a budget may choose for a layer of an adapter, from 0, left out, to full rank."""
    yield 0
    yield from layer.ranks
    if layer.largest_rank not in layer.ranks:
        yield layer.largest_rank
