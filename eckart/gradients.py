"""Sums over the gradients at the outputs of a model's linear layers, collected by hooks."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from eckart.checkpoint import listed
from eckart.errors import InputError
from eckart.gram_collector import input_of
from eckart.sums import Moments, SumStore, counted_part
from eckart.token_mask import counted_rows, counted_values
from eckart.unfolding import Unfolding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from eckart.probes import Probes


class GradientCollector:
    """Hooks on the outputs of layers inside a `with` block, in which no parameter takes gradients.

    To each output a zero is added that does take one: so gradients flow to every layer, whatever is frozen,
    and no gradient of a weight is ever computed. An output's gradient is added to its layer's sum as soon as
    it is known, and kept no longer than autograd keeps it.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], probes: Probes, store: SumStore
    ) -> None:
        self._model = model
        self._layers = layers
        self._probes = probes
        self._store = store
        self._sums: dict[str, Moments] = {}
        self._zeros: dict[torch.device, Tensor] = {}
        self._generators: dict[torch.device, torch.Generator] = {}
        self._is_backward = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        parameters = list(self._model.parameters())
        if any(parameter.is_inference() for parameter in parameters):
            raise InputError(
                "the model was made in inference mode, where there are no gradients; load it outside of "
                "torch.inference_mode()"
            )
        with ExitStack() as stack:
            for parameter in parameters:
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(False)
            for name, module in self._layers.items():
                hook = module.register_forward_hook(self._hook(name, module), with_kwargs=True)
                stack.callback(hook.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sums.clear()
        self._zeros.clear()
        self._stack.close()

    def output_of(self, returned: object, batch: object) -> Tensor:
        """Return the tensor to probe, out of what the model returned."""
        return self._probes.output_of(returned, batch)

    def backward(self, output: Tensor) -> None:
        """Run backwards once for each probe of an output; the last run frees the graph."""
        if not output.requires_grad:
            raise InputError(
                "the output has no gradient: it does not depend on an included layer, or the model turns "
                "gradients off, by torch.no_grad() or torch.inference_mode()"
            )
        generator = self._generator(output.device)
        self._is_backward = True
        try:
            for left in reversed(range(self._probes.number)):
                probe = self._probes.draw(output, counted_values(output), generator)
                torch.autograd.backward(
                    output, probe, retain_graph=left > 0, inputs=list(self._zeros.values())
                )
        finally:
            self._is_backward = False
            for zero in self._zeros.values():
                zero.grad = None

    def finish(self) -> dict[str, Tensor]:
        """Return the sums by layer for one probe, the mean of all; none where no gradient came to a layer."""
        for sums in self._sums.values():
            sums.settle()
        found = {name: self._sums[name].gram for name in self._layers if name in self._sums}
        if bad := [name for name, gram in found.items() if not bool(torch.isfinite(gram).all())]:
            raise InputError(f"gradients at {listed(bad)} hold NaN or infinity; use a model in float32")
        found = {name: gram for name, gram in found.items() if bool(gram.any())}
        if not found:
            raise InputError("no gradient came to any included layer: the output depends on none of them")
        for gram in found.values():
            gram.div_(self._probes.number)
        return found

    def _hook(
        self, name: str, module: nn.Module
    ) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Tensor | None]:
        unfolding = Unfolding.of(module)

        def watch(
            _module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any
        ) -> Tensor | None:
            is_floating = isinstance(output, Tensor) and output.is_floating_point()
            if not is_floating or not torch.is_grad_enabled():
                return None
            watched: Tensor = output + self._zero(output.device)
            # Checkpointing calls a layer again to recompute its output, whose gradient is on its way already.
            if not self._is_backward:
                counted = counted_rows(input_of(given, named)) if unfolding is None else None
                # Of a convolution, the outputs are the last dimension before those of the kernel.
                features = -1 if unfolding is None else -1 - len(unfolding.kernel)
                add = partial(self._add, name, counted, features)
                watched.register_hook(add)  # type: ignore[no-untyped-call]
            return watched

        return watch

    def _add(self, name: str, counted: Tensor | None, features: int, gradient: Tensor) -> None:
        gradient = gradient.movedim(features, -1)
        if name not in self._sums:
            self._sums[name] = Moments(gradient.shape[-1], self._store)
        self._sums[name].add(counted_part(gradient, counted))

    def _zero(self, device: torch.device) -> Tensor:
        if device not in self._zeros:
            self._zeros[device] = torch.zeros((), device=device, requires_grad=True)
        return self._zeros[device]

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._probes.seed)
        return self._generators[device]
