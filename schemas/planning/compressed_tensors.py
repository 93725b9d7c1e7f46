"""Results that are in the format of compressed-tensors alone, so that other programs load them without us.

A loader of that format rounds the modules that `targets` names and takes all others for dense. A module whose
name in the model is not the one in the file would get integers for weights, or random numbers, without an
error. So a result is in the format only where both names are known: in the families below, for the layers
that are named here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.format.metadata import FactoredLayer
from schemas.format.tensor import WEIGHT, TensorInfo
from schemas.planning.forms import Quantizer
from schemas.planning.layer import LayerPlan

QUANT_METHOD = "compressed-tensors"
# Often a Linear without a tensor of its own, since it shares that of the embeddings.
HEAD = "lm_head"
# What a class with a head has before the names of the base model; a program may add it or take it away.
PREFIX = r"(\w+\.)?"

# Heads that classify, or answer questions.
_CLASSIFIER = r"classifier(\.(dense|out_proj))?|qa_outputs"


@dataclass(frozen=True, slots=True)
class Family:
    """Models of transformers whose linear modules have the same names in the file and in every class.

    `prefix` fits the first part of a name in a class with a head; `linears` fits the names, without that part
    of modules that are a Linear in each class which has them. Heads that are tied by default are not there.

    Not here are models whose classes rename or stack weights of the file, as ViT and mixtures of experts, and
    T5: it runs its encoder, and reads weights, before compressed-tensors has decoded them.
    """

    model_types: frozenset[str]
    prefix: re.Pattern[str]
    linears: re.Pattern[str]

    def in_base(self, module: str) -> str:
        """Return a module's name below the base model."""
        return self.prefix.sub("", module, count=1)


FAMILIES = (
    Family(
        frozenset({"bert", "camembert", "electra", "roberta", "xlm-roberta"}),
        re.compile(r"^(bert|electra|roberta)\."),
        re.compile(
            r"encoder\.layer\.\d+\.((cross)?attention\.(self\.(query|key|value)|output\.dense)"
            r"|intermediate\.dense|output\.dense)|pooler\.dense|cls\.predictions\.transform\.dense"
            r"|cls\.seq_relationship|embeddings_project|(generator|discriminator)_predictions\.dense(_prediction)?"
            rf"|lm_head\.dense|{_CLASSIFIER}"
        ),
    ),
    Family(
        frozenset({"distilbert"}),
        re.compile(r"^distilbert\."),
        re.compile(
            r"transformer\.layer\.\d+\.(attention\.(q|k|v|out)_lin|ffn\.lin[12])"
            r"|vocab_transform|(pre_)?classifier|qa_outputs"
        ),
    ),
    Family(
        frozenset({"mpnet"}),
        re.compile(r"^mpnet\."),
        re.compile(
            r"encoder\.layer\.\d+\.(attention\.attn\.[qkvo]|intermediate\.dense|output\.dense)"
            rf"|pooler\.dense|lm_head\.dense|{_CLASSIFIER}"
        ),
    ),
    Family(
        frozenset(
            [
                *("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral"),
                *("olmo2", "phi3", "qwen2", "qwen3", "smollm3", "starcoder2"),
            ]
        ),
        re.compile(r"^(model|transformer)\."),
        re.compile(
            r"layers\.\d+\.(self_attn\.([qkvo]|qkv)_proj|mlp\.((gate|up|down|gate_up)_proj|c_fc|c_proj))"
            rf"|{HEAD}|score|{_CLASSIFIER}"
        ),
    ),
)


def common_quantizer(
    config: Mapping[str, Any], layers: Sequence[LayerPlan], ranks: Mapping[int, int]
) -> Quantizer | None:
    """Return how all replaced layers are rounded, or None if others could not load the result right.

    That is so if the layers differ or have more than integers, or if `config`, the model's config.json, does
    not tell the names of its modules. `ranks` holds the rank of each layer by its number, which is its index
    in `layers`.
    """
    replaced = [layers[number] for number in ranks]
    quantizers = {layer.form.quantizer for layer in replaced}
    if len(quantizers) != 1 or not all(map(_is_plain, replaced)):
        return None
    family = _family(config)
    if family is None or not all(_is_known(layer.name, family, config) for layer in replaced):
        return None
    return quantizers.pop()


def _family(config: Mapping[str, Any]) -> Family | None:
    """Return the family of a model, if its code is that of transformers."""
    model_type = config.get("model_type") if "auto_map" not in config else None
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def _is_known(module: str, family: Family, config: Mapping[str, Any]) -> bool:
    """Whether a module is a Linear of a known name that shares its weight with no other."""
    is_own = module != HEAD or config.get("tie_word_embeddings") is False
    return is_own and family.linears.fullmatch(family.in_base(module)) is not None


def _is_plain(layer: LayerPlan) -> bool:
    # Weights that are stored transposed belong to modules that are no Linear, and there are no scales of F64.
    is_linear = not layer.transposed and layer.dtype != "F64"
    return is_linear and not (layer.form.has_ranks or layer.dense_layout)


def compressed_tensors_config(
    config: Mapping[str, Any], layers: Mapping[str, FactoredLayer], tensors: Iterable[TensorInfo]
) -> dict[str, Any]:
    """Return the `quantization_config` for layers that are all rounded in the same way.

    `tensors` are those of the output. Modules with a dense matrix are no targets, and listed as ignored too,
    since some programs want to know of each module what it is.
    """
    first, family = next(iter(layers.values())), _family(config)
    assert family is not None
    rounded = dict.fromkeys(family.in_base(name) for name in layers)
    dense = [tensor.name.removesuffix(WEIGHT) for tensor in tensors if _is_dense_matrix(tensor)]
    # Integers of eight bits have the names of dense weights, with the prefix of the class that was saved.
    ignored = [name for name in (*dense, HEAD) if family.in_base(name) not in rounded]
    weights: dict[str, Any] = {"num_bits": first.bits, "type": "int", "symmetric": True, "dynamic": False}
    if first.group is None:
        weights["strategy"] = "channel"
    else:
        weights |= {"strategy": "group", "group_size": first.group}
    form = "int-quantized" if first.bits == 8 else "pack-quantized"
    group = {"targets": module_patterns(rounded), "weights": weights, "format": form}
    return {
        "quant_method": QUANT_METHOD,
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(dict.fromkeys(alias for name in ignored for alias in (name, family.in_base(name)))),
    }


def module_patterns(modules: Iterable[str]) -> list[str]:
    """Return regular expressions that match these modules and no others, with or without a prefix.

    Modules whose names differ in the first number only share one, in which their numbers stand.
    """
    numbers: dict[tuple[str, str], list[str]] = {}
    patterns: dict[tuple[str, str] | str, None] = {}
    for module in modules:
        parts = module.split(".")
        place = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
        if place is None:
            patterns[re.escape(module)] = None
            continue
        around = (re.escape(".".join(parts[:place])), re.escape(".".join(parts[place + 1 :])))
        numbers.setdefault(around, []).append(parts[place])
        patterns[around] = None
    return [
        f"re:{PREFIX}{key}$"
        if isinstance(key, str)
        else rf"re:{PREFIX}{key[0]}\.({'|'.join(numbers[key])})\.{key[1]}$"
        for key in patterns
    ]


def _is_dense_matrix(tensor: TensorInfo) -> bool:
    return tensor.name.endswith(WEIGHT) and len(tensor.shape) == 2
