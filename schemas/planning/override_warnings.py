"""Warnings of overrides, and of options of the method `cur`, that change nothing."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from schemas.planning.layer import LayerPlan
from schemas.planning.selection import LayerOptions
from schemas.spec import CompressionSpec, Override


def override_warnings(
    spec: CompressionSpec,
    alone: Sequence[tuple[LayerPlan, LayerOptions]],
    *,
    idle: Collection[int],
) -> Iterator[str]:
    """Yield a warning for each; `alone` are layers in no pair, with their options: see `Choice.alone`.

    `idle` overrides match no layer, which is told elsewhere.
    """
    methods: dict[int, set[str]] = {}
    for layer, own in alone:
        methods.setdefault(own.number, set()).update(layer.methods)
    setting = [number for number, override in enumerate(spec.overrides) if _sets_anything(override)]
    last_setting = max(setting, default=-1)
    for number, override in enumerate(spec.overrides):
        if number in idle:
            continue
        if number not in methods:
            yield f"overrides: {override.match!r} has no effect, since earlier ones match all its layers"
        elif number > last_setting:
            # One before others may keep its layers out of them.
            yield f"overrides: {override.match!r} has no effect, since it sets nothing"
        elif override.cur is not None and "cur" not in methods[number]:
            yield f"overrides: cur of {override.match!r} has no effect on {_joined(methods[number])}"
    ruled = [each for layer, own in alone if own.override.cur is None for each in layer.methods]
    is_given = spec.cur != CompressionSpec.model_fields["cur"].get_default(call_default_factory=True)
    if is_given and ruled and "cur" not in ruled:
        yield f"cur: it has no effect on {_joined(ruled)}"


def _sets_anything(override: Override) -> bool:
    return any(value is not None for name, value in override if name != "match")


def _joined(methods: Iterable[str]) -> str:
    return " and ".join(sorted(set(methods)))
