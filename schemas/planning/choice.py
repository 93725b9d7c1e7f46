"""Which tensors become layers, with which options, and by which rule each other one is left out."""

import re
from collections.abc import Collection, Hashable, Iterable

from schemas.format.tensor import WEIGHT
from schemas.planning.layer import LayerPlan, Tensor
from schemas.planning.layer_planner import LayerPlanner
from schemas.planning.layers import Layers
from schemas.planning.left_out import LeftOutSums
from schemas.planning.modules import Modules
from schemas.planning.selection import LayerOptions, Selection, can_be_factored, is_float_weight
from schemas.spec import DEFAULT_INCLUDE, CompressionSpec

FACTOR_NAME = re.compile(r"(?P<module>.*)\.[0-9]+\.weight")


class Choice:
    """The layers that are selected of a checkpoint, with the options of each, and what is left out."""

    def __init__(
        self,
        spec: CompressionSpec,
        selection: Selection,
        modules: Modules,
        members: Iterable[LayerPlan],
        *,
        difference: bool,
    ) -> None:
        """Choose by a spec; `members` are those of pairs, which no pattern leaves out."""
        self.layers = Layers()
        self.options: list[LayerOptions] = []
        self.left_out = LeftOutSums()
        # The modules of the weights to which a form applies, whatever the patterns say, if anybody asks.
        self.matrices: list[str] | None = [] if spec.include != DEFAULT_INCLUDE or spec.transposed else None
        self._selection = selection
        self._planner = LayerPlanner(spec, modules, self.layers, difference=difference)
        self._members = {layer.tensor: layer for layer in members}

    def take(self, tensor: Tensor) -> None:
        """Plan or leave out a tensor."""
        if (rule := self._take(tensor)) is not None:
            self.left_out.add(rule, tensor)

    def alone(self) -> list[tuple[LayerPlan, LayerOptions]]:
        """Return layers that are in no pair, one for each override and form, and their options."""
        found: dict[Hashable, tuple[LayerPlan, LayerOptions]] = {}
        seen = None
        for number, own in zip(self.layers.numbers, self.options, strict=True):
            if (number, own.number) != seen:
                seen = number, own.number
                layer = self.layers.kind(number)
                if layer.pair is None:
                    found.setdefault((own.number, layer.form, layer.candidates), (layer, own))
        return list(found.values())

    def _take(self, tensor: Tensor) -> str | None:
        """Plan a tensor, or return the rule by which it is left out."""
        if not is_float_weight(tensor):
            return self._selection.shape_rule(tensor)
        module = module_of(tensor)
        own = self._selection.options(module)
        member = self._members.get(tensor.name)
        if member is None and not can_be_factored(tensor, own.forms, transposed=own.transposed):
            return self._selection.shape_rule(tensor)
        if self.matrices is not None:
            self.matrices.append(module)
        if member is None and (rule := self._selection.pattern_rule(module)) is not None:
            return rule
        kind = self._planner.kind(tensor, own) if member is None else self.layers.kind_of(member)
        self.layers.append(module, kind)
        self.options.append(own)
        return None


def is_factor(name: str, factored: Collection[str]) -> bool:
    """Return whether a tensor is a factor of one of these modules."""
    found = FACTOR_NAME.fullmatch(name) if factored else None
    return found is not None and found["module"] in factored


def module_of(tensor: Tensor) -> str:
    return tensor.name.removesuffix(WEIGHT)
