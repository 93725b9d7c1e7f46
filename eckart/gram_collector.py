"""Gram matrices: sums of XXᵀ over the inputs X of a model's linear layers, collected by hooks in one pass."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from eckart.checkpoint import listed
from eckart.errors import InputError
from eckart.token_mask import counted_rows, following_masks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

# Rows whose products are summed in float32; the sums of such sums are in float64.
ROWS = 2048
# Query, key and value run one after another: this many inputs later, a layer may still take the same one.
WINDOW = 4


class GramSum:
    """XXᵀ of the inputs of a group of layers, the same for each of them.

    The newest input is held back until it is known which layers take it. The others get a sum of their own.
    """

    def __init__(self, members: set[str], total: Tensor | None = None) -> None:
        self.members = members
        self.total = total
        self.held: Tensor | None = None
        self.takers: set[str] = set()
        self._input: Tensor | None = None
        self._version: int | None = None

    def hold(self, x: Tensor, gram: Tensor, taker: str) -> None:
        """Hold back the contribution of an input."""
        self._input, self._version, self.held, self.takers = x, _version(x), gram, {taker}

    def holds(self, x: Tensor) -> bool:
        """Whether this very tensor is held back, and unchanged since."""
        return self._input is x and self._version is not None and self._version == _version(x)

    def release(self) -> Tensor | None:
        """Return the contribution that was held back; no further layer can take it."""
        held, self.held, self._input, self.takers = self.held, None, None, set()
        return held


class GramCollector:
    """Hooks on the chosen layers inside a `with` block; afterwards the model is as it was."""

    def __init__(
        self, model: nn.Module, chosen: Callable[[str], bool], *, spill_next_to: Path | None = None
    ) -> None:
        self._model = model
        self._layers = {n: m for n, m in _untied_layers(model) if chosen(n)}
        if not self._layers:
            raise InputError("the model has no Linear or Conv1D layer that is included")
        self._spill_next_to = spill_next_to
        self._folder: Path | None = None
        self._files = 0
        self._sums: dict[str, GramSum] = {}
        self._recent: list[GramSum] = []
        self._followed = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if (target := self._spill_next_to) is not None:
                folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
                self._folder = Path(stack.enter_context(folder))
            for module in self._model.modules():
                stack.callback(setattr, module, "training", module.training)
            self._model.eval()
            for name, module in self._layers.items():
                hook = module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
                stack.callback(hook.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sums.clear()
        self._recent.clear()
        self._stack.close()

    def run(self, batches: Iterable[object]) -> int:
        """Run the model on every batch; return how many there were."""
        count, has_padding = 0, False
        with torch.no_grad():
            for batch in batches:
                with following_masks(self._model, batch) as is_padded:
                    _call(self._model, batch)
                has_padding |= is_padded
                while self._recent:
                    self._flush(self._recent[0])
                count += 1
        if has_padding and not self._followed:
            warnings.warn(
                "padding was counted: the masks could not be followed to any layer, as in a compiled model",
                stacklevel=3,
            )
        return count

    def finish(self) -> dict[str, Tensor]:
        """Return the sums by layer; a layer whose inputs were all zero has none."""
        totals = {name: self._sums[name].total for name in self._layers if name in self._sums}
        grams = {name: gram for name, gram in totals.items() if gram is not None and bool(gram.any())}
        if not grams:
            raise InputError("no included layer took any input; are these batches of this model?")
        if bad := [name for name, gram in grams.items() if not bool(torch.isfinite(gram).all())]:
            raise InputError(f"inputs of {listed(bad)} hold NaN or infinity; leave out that batch")
        return grams

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def take(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._take(name, given[0] if given else next(iter(named.values())))

        return take

    def _take(self, name: str, x: Tensor) -> None:
        own = self._sums.get(name) or self._join(name, x)
        if name not in own.takers and own.holds(x):
            own.takers.add(name)
            return
        if own.held is not None and name not in own.takers:
            own = self._split(own, {name})
        elif own.held is not None:
            self._flush(own)
        counted = counted_rows(x)
        self._followed |= counted is not None
        own.hold(x, _gram(x, counted), name)
        self._recent.append(own)
        if len(self._recent) > WINDOW:
            self._flush(self._recent[0])

    def _join(self, name: str, x: Tensor) -> GramSum:
        """Put a new layer into the group of new layers with the same input, or into a group of its own."""
        new = GramSum(set())
        found = next((each for each in self._recent if each.total is None and each.holds(x)), new)
        found.members.add(name)
        self._sums[name] = found
        return found

    def _split(self, group: GramSum, names: set[str]) -> GramSum:
        """Move some layers to a group of their own that starts with the common sum."""
        group.members -= names
        total = None if group.total is None else self._zeros(group.total.shape).copy_(group.total)
        apart = GramSum(set(names), total)
        self._sums |= dict.fromkeys(names, apart)
        return apart

    def _flush(self, group: GramSum) -> None:
        """Add the contribution that is held back to the sum of the layers that took it."""
        if others := group.members - group.takers:
            self._split(group, others)
        self._recent.remove(group)
        held = group.release()
        assert held is not None
        if group.total is None:
            group.total = self._zeros(held.shape)
        group.total += held

    def _zeros(self, shape: torch.Size) -> Tensor:
        if self._folder is None:
            return torch.zeros(shape, dtype=torch.float64)
        self._files += 1
        file = self._folder / str(self._files)
        mapped = torch.from_file(str(file), shared=True, size=shape.numel(), dtype=torch.float64)
        return mapped.reshape(shape)


def _untied_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the linear layers whose weight is no other module's, as a head's may be the embedding's."""
    uses = Counter(
        id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False)
    )
    for name, module in model.named_modules():
        if _is_linear(module) and uses[id(module.weight)] == 1:
            yield name, module


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    is_conv1d = type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2
    return isinstance(module, nn.Linear) or is_conv1d


def _call(model: nn.Module, batch: object) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)


def _version(x: Tensor) -> int | None:
    """Return a number that changes when the tensor does; None where there is none."""
    return None if x.is_inference() else x._version  # noqa: SLF001 - torch's own, and its only one


def _gram(x: Tensor, counted: Tensor | None) -> Tensor:
    """Return XXᵀ in float64 on the CPU for inputs [..., n]; a mask [...] says which of them count."""
    rows = x.detach()
    if counted is not None:
        rows = rows[counted]
    rows = rows.reshape(-1, x.shape[-1])
    n = rows.shape[1]
    total = torch.zeros(n, n, dtype=torch.float64, device=x.device)
    with _exact(x.device):
        for block in torch.split(rows, ROWS):
            wide = block.to(torch.promote_types(block.dtype, torch.float32))
            total += wide.mT @ wide
    return total.cpu()


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Disable autocast and TF32: their rounding can make a sum indefinite."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
