"""Sums over the inputs of a model's linear layers, collected by hooks; layers of one input share one sum."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from eckart.checkpoint import listed
from eckart.errors import InputError
from eckart.sums import Moments, SumStore, counted_part
from eckart.token_mask import counted_rows
from eckart.unfolding import Unfolding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

# Query, key and value run one after another: this many inputs later, a layer may still take the same one.
WINDOW = 4


class InputSum:
    """Sums over the inputs of a group of layers, the same for each of them.

    The newest input is held back until it is known which layers take it. The others get a sum of their own.
    """

    def __init__(
        self, members: set[str], total: Moments | None = None, unfolding: Unfolding | None = None
    ) -> None:
        self.members = members
        self.unfolding = unfolding
        self.total = total
        self.held: Tensor | None = None
        self.takers: set[str] = set()
        self._input: Tensor | None = None
        self._version: int | None = None

    def hold(self, x: Tensor, rows: Tensor, taker: str) -> None:
        """Hold back the rows of an input."""
        self._input, self._version, self.held, self.takers = x, _version(x), rows, {taker}

    def holds(self, x: Tensor) -> bool:
        """Whether this very tensor is held back, and unchanged since."""
        return self._input is x and self._version is not None and self._version == _version(x)

    def serves(self, other: InputSum, x: Tensor) -> bool:
        """Whether this very tensor is held back, and its rows would be those of another sum."""
        return self.holds(x) and self.unfolding == other.unfolding

    def release(self) -> Iterator[Tensor]:
        """Yield the rows that were held back; no further layer can take them."""
        held, self.held, self._input, self.takers = self.held, None, None, set()
        assert held is not None
        if self.unfolding is None:
            yield held
        else:
            yield from self.unfolding.rows(held)


class GramCollector:
    """Hooks on the inputs of layers inside a `with` block."""

    def __init__(self, layers: Mapping[str, nn.Module], store: SumStore) -> None:
        self._layers = layers
        self._unfoldings = {name: Unfolding.of(layer) for name, layer in layers.items()}
        self._store = store
        self._sums: dict[str, InputSum] = {}
        self._recent: list[InputSum] = []
        self._stack = ExitStack()
        self.followed_masks = False
        # While gradients are computed, checkpointing may call a layer once more with the same inputs.
        self.paused = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
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

    def end_batch(self) -> None:
        """Add what is held back, so that no input outlives its batch."""
        while self._recent:
            self._flush(self._recent[0])

    def finish(self) -> dict[str, Moments]:
        """Return the sums by layer, one object for those that share them; none where all inputs were zero."""
        totals = {name: self._sums[name].total for name in self._layers if name in self._sums}
        for sums in totals.values():
            if sums is not None:
                sums.settle()
        found = {name: sums for name, sums in totals.items() if sums is not None and bool(sums.gram.any())}
        if not found:
            raise InputError("no included layer took any input; are these batches of this model?")
        if bad := [name for name, sums in found.items() if not bool(torch.isfinite(sums.gram).all())]:
            raise InputError(f"inputs of {listed(bad)} hold NaN or infinity; leave out that batch")
        return found

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def take(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            if not self.paused:
                self._take(name, input_of(given, named))

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
        counted = counted_rows(x) if own.unfolding is None else None
        self.followed_masks |= counted is not None
        own.hold(x, counted_part(x, counted) if own.unfolding is None else x.detach().clone(), name)
        self._recent.append(own)
        if len(self._recent) > WINDOW:
            self._flush(self._recent[0])

    def _join(self, name: str, x: Tensor) -> InputSum:
        """Put a new layer into the group of new layers with the same input, or into a group of its own."""
        new = InputSum(set(), unfolding=self._unfoldings[name])
        found = next((each for each in self._recent if each.total is None and each.serves(new, x)), new)
        found.members.add(name)
        self._sums[name] = found
        return found

    def _split(self, group: InputSum, names: set[str]) -> InputSum:
        """Move some layers to a group of their own that starts with the common sums."""
        group.members -= names
        total = None if group.total is None else group.total.copied(self._store)
        apart = InputSum(set(names), total, group.unfolding)
        self._sums |= dict.fromkeys(names, apart)
        return apart

    def _flush(self, group: InputSum) -> None:
        """Add the rows that are held back to the sums of the layers that took it."""
        if others := group.members - group.takers:
            self._split(group, others)
        self._recent.remove(group)
        for rows in group.release():
            if group.total is None:
                group.total = Moments(rows.shape[1], self._store)
            group.total.add(rows)


def input_of(given: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """Return the input with which a layer was called."""
    x: Tensor = given[0] if given else next(iter(named.values()))
    return x


def _version(x: Tensor) -> int | None:
    """Return a number that changes when the tensor does; None where there is none."""
    return None if x.is_inference() else x._version  # noqa: SLF001 - torch's own, and its only one
