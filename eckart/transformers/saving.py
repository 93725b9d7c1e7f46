"""Describe a model's factored layers in its config, so that what `save_pretrained` writes loads again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eckart.model_folder import QUANTIZATION
from eckart.torch.layers import LowRank
from eckart.torch.saving import describe
from eckart.transformers.config import EckartConfig
from eckart.transformers.naming import saved_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def describe_factors(model: PreTrainedModel, *, original_names: bool) -> None:
    """Set the config's `quantization_config` to what the model holds; transformers may keep its own names."""
    config = model.config
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}
    if layers:
        names = saved_names(model, layers) if original_names else {name: name for name in layers}
        config.quantization_config = EckartConfig(
            {names[name]: _entry(layer) for name, layer in layers.items()}
        )
    elif isinstance(getattr(config, QUANTIZATION, None), EckartConfig):
        del config.quantization_config


def _entry(layer: LowRank) -> dict[str, Any]:
    return describe(layer).model_dump(mode="json", exclude={"dtype"}, exclude_defaults=True)
