"""Which rows of a layer's input are padding: masks follow the tokens that they belong to through the model.

A shape does not tell it: the encoder and the decoder may have equally many tokens, and experts take rows of
all samples in an order of their own. So each tensor that is computed from a batch carries a mask of its own
shape, and each torch function that runs meanwhile hands it on to its results.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MASK = "attention_mask"
DECODER = "decoder_"
LABELS = "labels"
MASKS = (MASK, DECODER + MASK)
MASK_DIMS = 2  # [batch, tokens]
ATTRIBUTE = "_eckart_counts"
# They only move values, so they move a mask in the same way.
MOVES = frozenset(
    (
        "__getitem__",
        "T",
        "chunk",
        "expand",
        "expand_as",
        "gather",
        "index_select",
        "mT",
        "movedim",
        "narrow",
        "permute",
        "repeat",
        "repeat_interleave",
        "roll",
        "select",
        "split",
        "split_with_sizes",
        "squeeze",
        "swapaxes",
        "swapdims",
        "t",
        "take_along_dim",
        "tensor_split",
        "tile",
        "transpose",
        "unbind",
        "unsqueeze",
    )
)
# As above, but a mask that is expanded has no such view.
RESHAPES = frozenset(("flatten", "ravel", "reshape", "reshape_as", "unflatten", "view", "view_as"))
JOINS = frozenset(("cat", "concat", "concatenate", "hstack", "stack", "vstack"))
# The rows of the result are those of the first operand, such as the queries of an attention.
PRODUCTS = frozenset(
    (
        "__matmul__",
        "_native_multi_head_attention",
        "bmm",
        "einsum",
        "linear",
        "matmul",
        "mm",
        "multi_head_attention_forward",
        "scaled_dot_product_attention",
    )
)


def counted_rows(x: Tensor) -> Tensor | None:
    """Return which rows of an input [..., n] are no padding, as a mask [...]; None where it is unknown."""
    return x_counts[..., 0] if (x_counts := counted_values(x)) is not None and x_counts.ndim else None


def counted_values(tensor: Tensor) -> Tensor | None:
    """Return which values are no padding, a mask of their shape; None if unknown or reshaped in place."""
    counts: Tensor | None = getattr(tensor, ATTRIBUTE, None)
    return counts if counts is not None and counts.shape == tensor.shape else None


def named_inputs(model: nn.Module, batch: object) -> Mapping[str, object]:
    """Return the inputs of a batch by the names that the model's `forward` gives them."""
    if isinstance(batch, Mapping):
        return batch
    given = batch if isinstance(batch, tuple | list) else (batch,)
    names = [
        parameter.name
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return dict(zip(names, given, strict=False))


@contextmanager
def following_masks(model: nn.Module, batch: object) -> Iterator[bool]:
    """Let the masks of a batch follow its tokens while the model runs; yield whether there is any padding."""
    inputs = {name: value for name, value in named_inputs(model, batch).items() if isinstance(value, Tensor)}
    masks = {name: value for name, value in inputs.items() if name in MASKS and value.ndim == MASK_DIMS}
    if all(bool(mask.all()) for mask in masks.values()):
        yield False
        return
    tokens = {name: value for name, value in inputs.items() if name not in MASKS and value.ndim > 0}
    try:
        # Labels may be the very tensor of the tokens, whose mask counts.
        for name in sorted(tokens, key=lambda name: name == LABELS):
            if counted_values(tokens[name]) is None:
                _mark(tokens[name], _expanded(_mask_of(name, masks), tokens[name]))
        with MaskMode():
            yield True
    finally:
        for value in tokens.values():
            vars(value).pop(ATTRIBUTE, None)


def _mask_of(name: str, masks: Mapping[str, Tensor]) -> Tensor | None:
    if name == LABELS:
        return None
    return masks.get(DECODER + MASK if name.startswith(DECODER) else MASK)


def _expanded(mask: Tensor | None, value: Tensor) -> Tensor:
    """Return a mask of the shape of [batch, tokens] or [batch, tokens, n]; all count in any other tensor."""
    if mask is None or value.ndim > MASK_DIMS + 1 or value.shape[:MASK_DIMS] != mask.shape:
        return torch.ones((), dtype=torch.bool, device=value.device).expand(value.shape)
    counts = mask.to(value.device).bool()
    return counts if value.ndim == MASK_DIMS else counts[..., None].expand(value.shape)


class MaskMode(TorchFunctionMode):
    """Hands the masks of tensors on to what torch functions compute from them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        marked = [tensor for tensor in _tensors(args) if counted_values(tensor) is not None]
        result = func(*args, **kwargs)
        results = list(_tensors((result,))) if marked else []
        if results:
            for tensor, counts in zip(results, _masks(func, results, marked, args, kwargs), strict=True):
                if counts is not None:
                    _mark(tensor, counts)
        return result


def _masks(
    func: Callable[..., Any],
    results: list[Tensor],
    marked: list[Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> list[Tensor | None]:
    """Return the mask of each result of a torch function, some of whose operands are marked."""
    name, first = _name(func), marked[0]
    is_first = args[0] is first
    if is_first and name in MOVES:
        return list(_tensors((func(counted_values(first), *args[1:], **kwargs),)))
    if is_first and name in RESHAPES and results[0].numel() == first.numel():
        return [counts.reshape(results[0].shape) for counts in [counted_values(first)] if counts is not None]
    if name in JOINS and isinstance(args[0], tuple | list):
        return [func([_counts_or_all(part) for part in args[0]], *args[1:], **kwargs)]
    if name in PRODUCTS and next(_tensors(args)) is not first:
        return [None] * len(results)
    return [
        next((c for source in marked if (c := _same_rows(name, source, result)) is not None), None)
        for result in results
    ]


def _same_rows(name: str, source: Tensor, result: Tensor) -> Tensor | None:
    """Return the mask of a result that has the rows of an operand; None if it has others."""
    counts = counted_values(source)
    assert counts is not None
    if result.shape == source.shape:
        return counts
    if name == "embedding" and result.shape[:-1] == source.shape:
        return counts[..., None].expand(result.shape)
    has_features = source.is_floating_point() and source.ndim == result.ndim > 1
    if has_features and result.shape[:-1] == source.shape[:-1]:
        return counts[..., :1].expand(result.shape)
    return None


def _name(func: Callable[..., Any]) -> str:
    """Return the plain name of a torch function or method; that of a property is `__get__` otherwise."""
    name = getattr(func, "__name__", "")
    return (resolve_name(func) or "").split(".")[-2] if name == "__get__" else name


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _mark(tensor: Tensor, counts: Tensor) -> None:
    setattr(tensor, ATTRIBUTE, counts)


def _counts_or_all(tensor: Tensor) -> Tensor:
    counts = counted_values(tensor)
    return torch.ones_like(tensor, dtype=torch.bool) if counts is None else counts
