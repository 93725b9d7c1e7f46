"""What a plan leaves out, as shares of the checkpoint, and the warning where that is most of it."""

from collections.abc import Iterator, Mapping, Sequence

from schemas.format.errors import NAMES_LISTED
from schemas.planning.layer import Tensor
from schemas.planning.layers import LeftOut, Plan
from schemas.report import KEPT_REASONS, NOT_SELECTED, NotSelected

# A plan that leaves out a larger share of all parameters warns.
LARGE_SHARE = 0.5
TEXTS = NOT_SELECTED | {str(reason): text for reason, text in KEPT_REASONS.items()}


class LeftOutSums:
    """Sums up by rule what is left out, tensor by tensor."""

    def __init__(self, known: Mapping[str, LeftOut] | None = None) -> None:
        self.by_rule = dict(known or {})

    def add(self, rule: str, tensor: Tensor) -> None:
        self.count(rule, tensor.name, tensor.parameters, tensor.nbytes)

    def count(self, rule: str, name: str, parameters: int, nbytes: int) -> None:
        found = self.by_rule.get(rule) or LeftOut()
        names = found.names if len(found.names) == NAMES_LISTED else (*found.names, name)
        self.by_rule[rule] = LeftOut(
            found.tensors + 1, found.parameters + parameters, found.nbytes + nbytes, names
        )


def not_selected(plan: Plan) -> tuple[NotSelected, ...]:
    """Return by rule what a plan leaves out, the largest first.

    With the layers that are linear by all that is known, this is every tensor of the checkpoint, once.
    """
    sums = LeftOutSums(plan.unselected)
    total = sum(each.parameters for each in plan.unselected.values())
    any_left_out = False
    for layer, count in plan.counted():
        total += count * layer.parameters_before
        any_left_out = any_left_out or not layer.is_linear
    for layer in plan.layers if any_left_out else ():
        if layer.reason is not None and not layer.is_linear:
            sums.count(layer.reason, layer.tensor, layer.parameters_before, layer.bytes_before)
    found = [
        NotSelected(
            rule=rule,
            tensors=each.tensors,
            parameters=each.parameters,
            share=each.parameters / total if total else 0.0,
            names=each.names,
        )
        for rule, each in sums.by_rule.items()
    ]
    return tuple(sorted(found, key=lambda entry: (-entry.parameters, entry.rule)))


def left_out_warnings(plan: Plan) -> Iterator[str]:
    """Warn where no layer is selected, or where most of the checkpoint is left out."""
    entries = not_selected(plan)
    if not plan.layers:
        yield "no layer is selected: the output equals the input" + _why_none(entries)
        return
    share = sum(entry.share for entry in entries)
    if share > LARGE_SHARE:
        most = entries[0]
        yield (
            f"{share:.1%} of all parameters are not selected; the largest rule, {most.rule!r}"
            f"{_explained(most)}, leaves out {most.share:.1%}, such as {most.names[0]}"
        )


def _why_none(entries: Sequence[NotSelected]) -> str:
    """Say by which rules the tensors that look like weights are left out."""
    rules = [entry for entry in entries if entry.rule != "vector"]
    return "".join(f"; {entry.rule}: {entry.names[0]}{_others(entry)}{_explained(entry)}" for entry in rules)


def _others(entry: NotSelected) -> str:
    return f" and {entry.tensors - 1} more" if entry.tensors > 1 else ""


def _explained(entry: NotSelected) -> str:
    text = TEXTS.get(entry.rule)
    return "" if text is None else f" ({text[0].lower()}{text[1:].rstrip('.')})"
