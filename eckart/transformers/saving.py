"""Describe a model's factored layers where `save_pretrained` writes it: in its config and in each file."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from eckart.model_folder import QUANTIZATION
from eckart.torch.layers import Compressed
from eckart.torch.manifest import METADATA_KEY, FactoredLayer, manifest_text
from eckart.torch.saving import describe
from eckart.torch.stored_weight import first_tensor
from eckart.transformers.config import EckartConfig
from eckart.transformers.naming import saved_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from transformers import PreTrainedModel

# The layers of the model that is being saved, by their names in the files; transformers passes none on.
_layers: ContextVar[Mapping[str, FactoredLayer] | None] = ContextVar("layers", default=None)


@contextmanager
def described(model: PreTrainedModel, *, original_names: bool) -> Iterator[None]:
    """Set the config's `quantization_config` to what the model holds, and have its files list the same.

    Transformers may keep its own names.
    """
    config = model.config
    modules = {name: module for name, module in model.named_modules() if isinstance(module, Compressed)}
    names = saved_names(model, modules) if original_names else {name: name for name in modules}
    layers = {names[name]: describe(module) for name, module in modules.items()}
    if layers:
        config.quantization_config = EckartConfig({name: _entry(layer) for name, layer in layers.items()})
    elif isinstance(getattr(config, QUANTIZATION, None), EckartConfig):
        del config.quantization_config
    token = _layers.set(layers)
    try:
        yield
    finally:
        _layers.reset(token)


def with_layers(metadata: Mapping[str, str] | None, tensors: Collection[str]) -> dict[str, str] | None:
    """Return the metadata of a file with these tensors, with the layers whose factors it holds."""
    layers = (_layers.get() or {}).items()
    held = {name: layer for name, layer in layers if first_tensor(name, layer) in tensors}
    own = {METADATA_KEY: manifest_text(held)} if held else {}
    return None if metadata is None and not own else {**(metadata or {}), **own}


def _entry(layer: FactoredLayer) -> dict[str, Any]:
    return layer.model_dump(mode="json", exclude={"dtype"}, exclude_defaults=True)
