"""Adapters: the forms and ranks that their layers may have, and the config that PEFT reads."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from schemas.planning.forms import Chain
from schemas.planning.layer import LayerPlan
from schemas.problem import SpecError
from schemas.rank_rule import RankRule
from schemas.report import KeptReason

ADAPTER_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
T = TypeVar("T", int, float)
# PEFT takes the keys of its patterns for regular expressions. A dot is left as it is, as PEFT itself does.
PLAIN_NAME = re.compile(r"[\w.\-]+")


def check_adapter(layers: Sequence[LayerPlan], pointers: Sequence[str]) -> None:
    """Refuse forms that do not store two factors, and an adapter without any layer.

    `pointers` are the fields of the spec that chose each layer's form.
    """
    for layer, pointer in zip(layers, pointers, strict=True):
        for form in (each.form for each in layer.variants) if layer.in_adapter else ():
            if not (isinstance(form, Chain) and form.num_factors == 2):
                hint = ' Give "cur": {"storage": "two"}.' if form.name == "cur" else " Give svd or cx."
                raise SpecError(
                    pointer,
                    f"An adapter has two factors for each layer, but {form.name} stores others.{hint}",
                )
    if not any(layer.reason is None for layer in layers):
        raise SpecError(
            "/rank" if layers else "/include",
            "No layer would be in the adapter. "
            + ("Give a larger rank or ratio." if layers else "Select at least one weight that differs."),
        )


def adapter_rank(
    layer: LayerPlan, rank: int | RankRule | None
) -> tuple[int | RankRule | None, KeptReason | None]:
    """Resolve a rank that depends on the shape alone, for a layer of an adapter.

    An adapter cannot hold a dense difference. So the largest rank is the full rank, which needs more
    parameters and has no error; `align` does not restrict it.
    """
    if layer.largest_rank == 0:
        return None, "unchanged"
    least = layer.rounded_up(layer.min_rank)
    if isinstance(rank, int):
        return min(layer.largest_rank, max(least, layer.rounded_up(rank))), None
    if rank is None or rank.ratio is None:
        return rank, None
    most = layer.ratio_rank(rank.ratio)
    most -= most % layer.align
    return (most, None) if most >= least else (None, "rank_zero")


def adapter_ranks(layer: LayerPlan) -> Iterator[int]:
    """Yield the ranks that a budget may choose for a layer of an adapter, from 0, left out, to full rank."""
    yield 0
    yield from layer.ranks
    if layer.largest_rank not in layer.ranks:
        yield layer.largest_rank


def adapter_config(layers: Mapping[str, tuple[LayerPlan, int]], modules: Iterable[str]) -> dict[str, Any]:
    """Return the content of `adapter_config.json`.

    `alpha` equals the rank of each layer, so that the product of the factors is added as it is. `r` is the
    largest rank, since a program may reserve that much for each layer.

    Parameters
    ----------
    layers
        The plan and the rank of each layer in the adapter, by the name of its module; at least one.
    modules
        All names of tensors or modules of the model, by which a target could be mistaken for another.
    """
    ranks = {name: rank for name, (_, rank) in layers.items()}
    largest = max(ranks.values())
    pattern = pattern_of(ranks, largest)
    return {
        "alpha_pattern": pattern,
        # The id of a stored checkpoint could be the name of somebody else's model on a hub.
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": any(layer.transposed for layer, _ in layers.values()),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": largest,
        "rank_pattern": pattern,
        "target_modules": _targets(ranks, modules),
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }


def pattern_of(values: Mapping[str, T], usual: T) -> dict[str, T]:
    """Return one of PEFT's patterns: the values of modules that differ from the usual one, by keys for names.

    So are those whose names end in one of these, whose key would fit them too.
    """
    others = {name for name, value in values.items() if value != usual}
    listed = others | {name for name in values if not others.isdisjoint(_ends(name))}
    # PEFT takes the first key that is a suffix of a module's name: the longest must come first.
    return {_key(name): values[name] for name in sorted(listed, key=lambda name: (-len(name), name))}


def _ends(name: str) -> Iterator[str]:
    return (name[at + 1 :] for at, letter in enumerate(name) if letter == ".")


def _key(name: str) -> str:
    return name if PLAIN_NAME.fullmatch(name) else re.escape(name)


def _targets(names: Collection[str], modules: Iterable[str]) -> list[str] | str:
    """Return the targets as a list, or as a regular expression where one is the end of another module."""
    parts = [name.split(".") for name in modules]
    others = {".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)}.difference(names)
    ends = {end for name in others for end in _ends(name)}
    if ends.isdisjoint(names):
        return sorted(names)
    return "|".join(map(re.escape, sorted(names)))
