"""What a plan leaves out, as shares of the checkpoint, and the warning where that is most of it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from schemas.format.errors import NAMES_LISTED
from schemas.planning.layer import Plan, Tensor
from schemas.report import KEPT_REASONS, NOT_SELECTED, NotSelected

# A plan that leaves out a larger share of all parameters warns.
LARGE_SHARE = 0.5
TEXTS = NOT_SELECTED | {str(reason): text for reason, text in KEPT_REASONS.items()}


def not_selected(tensors: Iterable[Tensor], plan: Plan) -> tuple[NotSelected, ...]:
    """Sum up by rule what a plan leaves out, the largest first.

    With the layers that are linear by all that is known, this is every tensor of the checkpoint, once.
    """
    reasons = {layer.tensor: layer.reason for layer in plan.layers if not layer.is_linear}
    groups: defaultdict[str, list[Tensor]] = defaultdict(list)
    total = 0
    for tensor in tensors:
        total += tensor.parameters
        rule = plan.unselected.get(tensor.name) or reasons.get(tensor.name)
        if rule is not None:
            groups[rule].append(tensor)
    found = [_summed(rule, group, total) for rule, group in groups.items()]
    return tuple(sorted(found, key=lambda entry: (-entry.parameters, entry.rule)))


def _summed(rule: str, tensors: Sequence[Tensor], total: int) -> NotSelected:
    parameters = sum(tensor.parameters for tensor in tensors)
    return NotSelected(
        rule=rule,
        tensors=len(tensors),
        parameters=parameters,
        share=parameters / total if total else 0.0,
        names=tuple(tensor.name for tensor in tensors[:NAMES_LISTED]),
    )


def left_out_warnings(tensors: Sequence[Tensor], plan: Plan) -> Iterator[str]:
    """Warn where no layer is selected, or where most of the checkpoint is left out."""
    entries = not_selected(tensors, plan)
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
