"""Sums of XXᵀ over the inputs X of a model's linear layers, collected by hooks in one pass."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from eckart.errors import InputError
from schemas.format.errors import listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

# Rows whose products are summed in float32; the sums of such sums are in float64.
ROWS = 2048
# Query, key and value come one after another: so many inputs later, a layer may still take the same one.
WINDOW = 4
MASK = "attention_mask"


class GramSum:
    """XXᵀ of what a group of layers has taken in, the same for each of them.

    The newest input is held back until it is known who has taken it; whoever has not goes on without.
    """

    def __init__(self, members: set[str], total: Tensor | None = None) -> None:
        self.members = members
        self.total = total
        self.held: Tensor | None = None
        self.takers: set[str] = set()
        self._input: Tensor | None = None
        self._version: int | None = None

    def hold(self, x: Tensor, gram: Tensor, taker: str) -> None:
        """Hold back what an input adds."""
        self._input, self._version, self.held, self.takers = x, _version(x), gram, {taker}

    def holds(self, x: Tensor) -> bool:
        """Say whether it is this very tensor that is held back, and unchanged since."""
        return self._input is x and self._version is not None and self._version == _version(x)

    def release(self) -> Tensor | None:
        """Return what was held back, which nobody can take any more."""
        held, self.held, self._input, self.takers = self.held, None, None, set()
        return held


class Collector:
    """Hooks on the chosen layers from `with` to its end; afterwards the model is as it was."""

    def __init__(
        self, model: nn.Module, chosen: Callable[[str], bool], *, spill_beside: Path | None = None
    ) -> None:
        self._model = model
        self._layers = {n: m for n, m in model.named_modules() if _is_linear(m) and chosen(n)}
        if not self._layers:
            raise InputError("the model has no Linear or Conv1D layer that is included")
        self._spill_beside = spill_beside
        self._folder: Path | None = None
        self._files = 0
        self._sums: dict[str, GramSum] = {}
        self._recent: list[GramSum] = []
        self._mask: Tensor | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if (beside := self._spill_beside) is not None:
                folder = tempfile.TemporaryDirectory(prefix=f".{beside.name}.", dir=beside.parent)
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
        count = 0
        with torch.no_grad():
            for batch in batches:
                self._mask = batch.get(MASK) if isinstance(batch, Mapping) else None
                _call(self._model, batch)
                while self._recent:
                    self._settle(self._recent[0])
                count += 1
        return count

    def finish(self) -> dict[str, Tensor]:
        """Return the sums by layer; a layer that nothing but zeros came to has none."""
        totals = {name: self._sums[name].total for name in self._layers if name in self._sums}
        grams = {name: gram for name, gram in totals.items() if gram is not None and bool(gram.any())}
        if not grams:
            raise InputError("no included layer took any input; are these batches of this model?")
        if bad := [name for name, gram in grams.items() if not bool(torch.isfinite(gram).all())]:
            raise InputError(f"inputs of {listed(bad)} hold NaN or infinity; leave out the batch at fault")
        return grams

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def take(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._take(name, given[0] if given else next(iter(named.values())))

        return take

    def _take(self, name: str, x: Tensor) -> None:
        own = self._sums.get(name) or self._joined(name, x)
        if name not in own.takers and own.holds(x):
            own.takers.add(name)
            return
        if own.held is not None and name not in own.takers:
            own = self._split(own, {name})
        elif own.held is not None:
            self._settle(own)
        own.hold(x, _gram(x, self._mask), name)
        self._recent.append(own)
        if len(self._recent) > WINDOW:
            self._settle(self._recent[0])

    def _joined(self, name: str, x: Tensor) -> GramSum:
        """Put a layer that is new with others that are and take the same, or by itself."""
        new = GramSum(set())
        found = next((each for each in self._recent if each.total is None and each.holds(x)), new)
        found.members.add(name)
        self._sums[name] = found
        return found

    def _split(self, group: GramSum, names: set[str]) -> GramSum:
        """Let some go their own way, with what all had in common so far."""
        group.members -= names
        total = None if group.total is None else self._room(group.total.shape).copy_(group.total)
        apart = GramSum(set(names), total)
        self._sums |= dict.fromkeys(names, apart)
        return apart

    def _settle(self, group: GramSum) -> None:
        """Add what is held back to those who took it."""
        if others := group.members - group.takers:
            self._split(group, others)
        self._recent.remove(group)
        held = group.release()
        assert held is not None
        if group.total is None:
            group.total = self._room(held.shape)
        group.total += held

    def _room(self, shape: torch.Size) -> Tensor:
        if self._folder is None:
            return torch.zeros(shape, dtype=torch.float64)
        self._files += 1
        file = self._folder / str(self._files)
        mapped = torch.from_file(str(file), shared=True, size=shape.numel(), dtype=torch.float64)
        return mapped.reshape(shape)


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
    """Return what changes when the tensor does; None where nothing tells."""
    return None if x.is_inference() else x._version  # noqa: SLF001 - torch's own, and its only one


def _gram(x: Tensor, mask: object) -> Tensor:
    """Return XXᵀ in float64 on the CPU for inputs [..., n], but for those that a mask [...] leaves out."""
    rows = x.detach()
    if isinstance(mask, Tensor) and mask.shape == x.shape[:-1]:
        rows = rows[mask.to(x.device).bool()]
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
    """Keep autocast and TF32 out of products: their rounding would make a sum indefinite."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
