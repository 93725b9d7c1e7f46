"""The widths of MLPs in a model's config.json, after some of them have lost neurons."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.format.errors import quoted
from schemas.format.tensor import WEIGHT
from schemas.planning.layer import Tensor
from schemas.planning.modules import Modules
from schemas.planning.pairs import known_mlps

# The keys that say how wide the MLPs of a model are.
WIDTHS = (
    *("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "dim_feedforward"),
    *("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size", "shared_expert_intermediate_size"),
)
# The same key is the width of the model itself in others.
WIDTHS_OF_TYPES = {"distilbert": ("hidden_dim",)}
# Where these are null the MLP is four times as wide as the model.
FOURFOLD = {"n_inner": "n_embd", "intermediate_size": "hidden_size"}
# A key with such a beginning counts for the modules below one of that name.
HALVES = ("encoder", "decoder")
MOST_NESTED = 3


@dataclass(frozen=True, slots=True)
class Width:
    """The number of neurons of an MLP before and after; both are equal where it is not cut."""

    before: int
    after: int


def mlp_widths(
    tensors: Iterable[Tensor], aliases: Mapping[str, str], cut: Mapping[str, Width]
) -> dict[str, Width]:
    """Return the widths of all MLPs by the name of the module behind the neurons: the cut ones and others.

    The others are found by well-known names, since a config.json says one width for all of them.
    """
    tensors = tuple(tensors)
    shapes = {tensor.name: tensor.shape for tensor in tensors if tensor.name.endswith(WEIGHT)}
    modules = Modules(tensors, aliases)
    found = dict(cut)
    for mlp in known_mlps(name.removesuffix(WEIGHT) for name in shapes):
        shape = shapes[mlp.down + WEIGHT]
        if mlp.down not in cut and len(shape) == 2:
            width = shape[0] if modules.is_transposed(mlp.down) else shape[1]
            found[mlp.down] = Width(width, width)
    return found


def with_widths(
    config: Mapping[str, Any], widths: Mapping[str, Width]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a config.json with the new widths, and warnings of MLPs whose width it cannot say."""
    said: set[str] = set()
    unequal: set[str] = set()
    changed = _patched(config, widths, said, unequal, MOST_NESTED)
    unsaid = [name for name, width in widths.items() if width.before != width.after and name not in said]
    if not unsaid:
        return changed, ()
    name = unsaid[0]
    why = (
        "one number says how wide all MLPs like it are, and they differ now"
        if name in unequal
        else f"it has none of the keys that are known with the number {widths[name].before}"
    )
    neurons = f"{widths[name].after} of its {widths[name].before} neurons"
    warning = (
        f"config.json does not say that {quoted(name)} has {neurons}, since {why}. Stock transformers "
        "refuses this folder: build the model by hand."
    )
    return changed, (warning,)


def _patched(
    config: Mapping[str, Any], widths: Mapping[str, Width], said: set[str], unequal: set[str], depth: int
) -> dict[str, Any]:
    changed = dict(config)
    for key, before in _stated_widths(config):
        names = {name for name, width in widths.items() if width.before == before and _counts_for(key, name)}
        after = {widths[name].after for name in names}
        if len(after) == 1:
            changed[key] = after.pop()
            said |= names
        else:
            unequal |= names
    for key, value in config.items():
        if isinstance(value, dict) and depth:
            changed[key] = _patched(value, widths, said, unequal, depth - 1)
    return changed


def _stated_widths(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the keys of one level that say a width of MLPs, with the width."""
    kind = config.get("model_type")
    for key in (*WIDTHS, *(WIDTHS_OF_TYPES.get(kind, ()) if isinstance(kind, str) else ())):
        value = config.get(key)
        model = config.get(FOURFOLD.get(key, ""))
        if type(value) is int:
            yield key, value
        elif key in config and value is None and type(model) is int:
            yield key, 4 * model


def _counts_for(key: str, name: str) -> bool:
    half = next((half for half in HALVES if key.startswith(half)), None)
    return half is None or half in name.split(".")
