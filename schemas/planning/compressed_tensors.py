"""Results that are in the format of compressed-tensors alone, so that other programs load them without us."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from schemas.format.metadata import FactoredLayer
from schemas.format.tensor import TensorInfo
from schemas.planning.forms import Quantizer
from schemas.planning.layer import WEIGHT, LayerPlan

QUANT_METHOD = "compressed-tensors"
# A head whose weight is tied to the embeddings is a Linear without a tensor of its own.
TIED_HEAD = "lm_head"


def common_quantizer(layers: Sequence[LayerPlan], ranks: Mapping[int, int]) -> Quantizer | None:
    """Return how all replaced layers are rounded, or None if they differ or have more than integers.

    `ranks` holds the rank of each of them by its number, which is its index in `layers`.
    """
    replaced = [layers[number] for number in ranks]
    quantizers = {layer.form.quantizer for layer in replaced if _is_plain(layer)}
    if len(quantizers) != 1 or not all(map(_is_plain, replaced)):
        return None
    return quantizers.pop()


def _is_plain(layer: LayerPlan) -> bool:
    # Weights that are stored transposed belong to modules that are no Linear, and there are no scales of F64.
    is_linear = not layer.transposed and layer.dtype != "F64"
    return is_linear and not (layer.form.has_ranks or layer.dense_layout)


def compressed_tensors_config(
    layers: Mapping[str, FactoredLayer], tensors: Iterable[TensorInfo]
) -> dict[str, Any]:
    """Return the `quantization_config` for layers that are all rounded in the same way.

    `tensors` are those of the output: modules with a dense matrix are listed as ignored, also by the names
    that they have in the base model, whose names lack the first part.
    """
    first = next(iter(layers.values()))
    dense = [tensor.name.removesuffix(WEIGHT) for tensor in tensors if _is_dense_matrix(tensor)]
    names = [name for name in dense if name not in layers]
    in_base = (name.partition(".")[2] for name in names)
    ignored = dict.fromkeys([*names, *(name for name in in_base if name and name not in layers), TIED_HEAD])
    weights: dict[str, Any] = {"num_bits": first.bits, "type": "int", "symmetric": True, "dynamic": False}
    if first.group is None:
        weights["strategy"] = "channel"
    else:
        weights |= {"strategy": "group", "group_size": first.group}
    form = "int-quantized" if first.bits == 8 else "pack-quantized"
    group = {"targets": ["Linear"], "weights": weights, "format": form}
    return {
        "quant_method": QUANT_METHOD,
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(ignored),
    }


def _is_dense_matrix(tensor: TensorInfo) -> bool:
    return tensor.name.endswith(WEIGHT) and len(tensor.shape) == 2
