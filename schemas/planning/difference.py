"""Difference jobs: a fine-tuned checkpoint minus its base, which must have the same tensors."""

from collections.abc import Iterable, Sequence

from schemas.format.errors import listed, quoted
from schemas.format.tensor import DTYPE_BITS, FLOAT_DTYPES
from schemas.planning.layer import Tensor
from schemas.planning.references import BaseError
from schemas.problem import SpecError
from schemas.spec import CompressionSpec

# Counters and positions, which some libraries store and others do not.
INTEGER_DTYPES = frozenset(dtype for dtype in DTYPE_BITS if dtype == "BOOL" or dtype[0] in "UI")


def check_layout(spec: CompressionSpec, *, has_base: bool) -> None:
    """Refuse a layout that cannot hold a difference."""
    if has_base and spec.layout == "factored":
        raise SpecError(
            "/layout",
            "With a base, give the layout `adapter`, a LoRA adapter of the difference, or `dense`, the base "
            "plus the difference of low rank.",
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
        f"{_count(names)} {'are' if len(names) > 1 else 'is'} only in the {where} ({_quoted(names)})"
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
            f"The base has other shapes for {_count(others)}: {listed(others)}. "
            "Give the model that this one was fine-tuned from.",
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
            f"The base has dtypes that cannot be subtracted for {_count(others)}: {listed(others)}. "
            f"Give it in one of {', '.join(sorted(FLOAT_DTYPES))}.",
        )


def _count(tensors: Sequence[str]) -> str:
    return "1 tensor" if len(tensors) == 1 else f"{len(tensors)} tensors"


def _quoted(names: Sequence[str]) -> str:
    return listed([quoted(name) for name in names])
