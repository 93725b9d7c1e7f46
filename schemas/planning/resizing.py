"""Adapters that get lower ranks: what a spec may ask for, and the config that keeps each layer's scale."""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from schemas.format.encodings import EncodedWeight
from schemas.format.errors import CheckpointError, quoted
from schemas.method import methods_of
from schemas.planning.adapter import CONFIG_NAME, pattern_of
from schemas.planning.layer import ADAPTER_PREFIX, Tensor
from schemas.problem import SpecError
from schemas.rank_rule import RankRule
from schemas.spec import DEFAULT_EXCLUDE, CompressionSpec

NO_LORA_PAIR = "no_lora_pair"
LOAD_AS_BEFORE = "The adapter has the format and the names that it had: load it as you loaded it before."
# Others change the weights of the model by the rank, or by more than the pair, when the adapter is loaded.
INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")
# With these, a module is not the sum of its weight and one scaled product.
OTHER_KINDS = (
    *("use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config"),
    *("target_parameters", "use_qalora", "megatron_config"),
)
# Of a pattern, whose keys are regular expressions that others wrote: the longest, how often one may repeat
# something, and how often keys may be compared with names.
LONGEST_KEY, MOST_REPEATS = 1024, 1
MOST_COMPARED = 4_000_000
LARGEST = 1e9
_REPEAT = re.compile(r"[*+?{]")


def is_lora(tensor: Tensor) -> bool:
    """Return whether a weight is the product of two matrices of an adapter."""
    return isinstance(tensor, EncodedWeight) and tensor.encoded.rank > 0


def resize_spec(spec: CompressionSpec, tensors: Sequence[Tensor]) -> CompressionSpec:
    """Return the spec by which the pairs of an adapter are selected, whatever the names of their modules.

    Raises
    ------
    SpecError
        If there are none, or the spec asks for what a pair cannot have.
    """
    if not any(map(is_lora, tensors)):
        raise SpecError(
            "/layout",
            "An adapter holds the difference to another checkpoint: give base, the id of the stored "
            "checkpoint that this one was fine-tuned from. Without a base the checkpoint must be a LoRA "
            "adapter, which gets lower ranks, and this one has no pair lora_A and lora_B, or lora_down and "
            "lora_up, of floats that fit.",
        )
    for pointer, method in _methods(spec):
        if methods_of(method) != ("svd",):
            raise SpecError(pointer, "An adapter gets lower ranks by svd alone.")
    for pointer, rank in _ranks(spec):
        if isinstance(rank, RankRule) and rank.auto is not None:
            raise SpecError(
                f"{pointer}/auto", "What is noise in an adapter cannot be told; give another rule."
            )
    for field in ("calibration", "transposed"):
        if getattr(spec, field):
            raise SpecError(f"/{field}", f"Without a base, an adapter takes no {field}; leave it out.")
    # Whatever an adapter changes by a pair is a linear layer or a convolution.
    return spec.model_copy(update={"exclude": ()}) if spec.exclude == DEFAULT_EXCLUDE else spec


def _methods(spec: CompressionSpec) -> list[tuple[str, Any]]:
    own = [(f"/overrides/{n}/method", each.method) for n, each in enumerate(spec.overrides)]
    return [("/method", spec.method), *((pointer, method) for pointer, method in own if method is not None)]


def _ranks(spec: CompressionSpec) -> list[tuple[str, Any]]:
    return [("/rank", spec.rank), *((f"/overrides/{n}/rank", o.rank) for n, o in enumerate(spec.overrides))]


def check_adapter_config(config: Mapping[str, Any], ranks: Mapping[str, int]) -> None:
    """Refuse a config that is not that of a LoRA with these ranks, by module, or whose meaning is not known.

    Raises
    ------
    CheckpointError
        With the fault ``bad-adapter-config``; the detail says what is not known.
    """
    if config.get("peft_type") != "LORA":
        raise refused_config(
            f"peft_type is {_shown(config.get('peft_type'))}, and only LORA can get lower ranks"
        )
    if (given := config.get("init_lora_weights")) not in INITIAL:
        raise refused_config(
            f"with init_lora_weights {_shown(given)} the model's own weights depend on the rank"
        )
    for field in OTHER_KINDS:
        if config.get(field):
            raise refused_config(f"with {field} a layer is not the sum of its weight and one product")
    for field in ("rank_pattern", "alpha_pattern"):
        _check_pattern(field, config.get(field) or {}, ranks)
    if not (isinstance(config.get("r"), int) and _is_number(config.get("lora_alpha"))):
        raise refused_config("r and lora_alpha must be numbers")
    find = _own(config, "rank_pattern", "r")
    for module, rank in ranks.items():
        if (given := find(module)) != rank:
            raise refused_config(
                f"the rank of {quoted(module)} is {_shown(given)} there, and {rank} in the weights"
            )


def resized_config(
    config: Mapping[str, Any], before: Mapping[str, int], after: Mapping[str, int]
) -> dict[str, Any]:
    """Return the config in which each module has its new rank, and the scale that it had.

    `before` and `after` have the ranks of all modules, by name. As in a new adapter, `r` is the largest rank.
    """
    alphas, find = {}, _own(config, "alpha_pattern", "lora_alpha")
    for module, rank in before.items():
        # Divided last, so that an alpha that is a multiple of the rank gives a whole one.
        product = find(module) * (math.sqrt(after[module]) if config.get("use_rslora") else after[module])
        alphas[module] = _whole(product / (math.sqrt(rank) if config.get("use_rslora") else rank))
    largest = max(after.values())
    usual = next(alphas[module] for module in after if after[module] == largest)
    return {
        **config,
        "r": largest,
        "lora_alpha": usual,
        "rank_pattern": pattern_of(after, largest),
        "alpha_pattern": pattern_of(alphas, usual),
    }


def _own(config: Mapping[str, Any], field: str, otherwise: str) -> Callable[[str], Any]:
    """Return how PEFT finds a module's value: by the first key that fits the end of its name."""
    pattern: Mapping[str, Any] = config.get(field) or {}
    keys = [(re.compile(rf"(.*\.)?({key})$"), value) for key, value in pattern.items()]

    def find(module: str) -> Any:
        return next((value for key, value in keys if key.match(module)), config[otherwise])

    return find


def _check_pattern(field: str, pattern: object, modules: Collection[str]) -> None:
    if not isinstance(pattern, Mapping):
        raise refused_config(f"{field} is no object")
    longest = max(map(len, modules), default=0)
    if pattern and (longest > LONGEST_KEY or len(pattern) * len(modules) > MOST_COMPARED):
        raise refused_config(f"{field} has too many entries, or the modules have too long names")
    for key, value in pattern.items():
        if not _is_number(value):
            raise refused_config(f"{field} has no number for {_shown(key)}")
        # Other regular expressions could keep this process busy for ever.
        if len(key) > LONGEST_KEY or len(_REPEAT.findall(key)) > MOST_REPEATS:
            raise refused_config(f"{field} has a regular expression that is not taken, {_shown(key)}")
        try:
            re.compile(key)
        except (re.error, RecursionError, OverflowError):
            raise refused_config(f"{field} has no regular expression in {_shown(key)}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


def _shown(value: object) -> str:
    return quoted(value if isinstance(value, str) else repr(value))


def refused_config(why: str) -> CheckpointError:
    """Return the error for a config that is not known well enough."""
    return CheckpointError("bad-adapter-config", f"{CONFIG_NAME}: {why}.")


def without_prefix(module: str) -> str:
    """Return the name that PEFT compares with its patterns."""
    return module.removeprefix(ADAPTER_PREFIX)
