"""The places where transformers has no hook that all supported releases call."""

from __future__ import annotations

import json
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from transformers import PretrainedConfig, PreTrainedModel, modeling_utils
from transformers.quantizers.auto import (
    AutoHfQuantizer,
    register_quantization_config,
    register_quantizer,
)

from eckart.companions import CONFIG_NAME
from eckart.model_folder import (
    ECKART_ENTRY,
    MISSING_WEIGHTS,
    QUANT_METHOD,
    QUANTIZATION,
    USUAL_NAMES,
    WEIGHTS_NAME,
)
from eckart.transformers.config import EckartConfig
from eckart.transformers.loading import load_folder, options_of
from eckart.transformers.quantizer import EckartQuantizer
from eckart.transformers.saving import described, with_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike


def install() -> None:
    """Register the method `eckart`, and wrap functions of transformers."""
    _wrap(modeling_utils, "_get_resolved_checkpoint_files", _finds_weights)
    _wrap(AutoHfQuantizer, "merge_quantization_configs", _merges_configs)
    _wrap(PreTrainedModel, "_load_pretrained_model", _loads_folders)
    _wrap(PreTrainedModel, "save_pretrained", _saves_models)
    _wrap(modeling_utils, "safe_save_file", _saves_files)
    _wrap(PretrainedConfig, "save_pretrained", _saves_configs)
    register_quantization_config(QUANT_METHOD)(EckartConfig)
    register_quantizer(QUANT_METHOD)(EckartQuantizer)


def _wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    if name not in vars(owner):
        raise ImportError(
            f"eckart.transformers needs {name}, which transformers {transformers.__version__} does not have; "
            "install transformers 4.57 to 5.24, or upgrade eckart"
        )
    setattr(owner, name, make(vars(owner)[name]))


def _finds_weights(original: Callable[..., Any]) -> Callable[..., Any]:
    """Find the folder's weights where its config.json asks for the file that does not exist."""

    @wraps(original)
    def resolve(*args: Any, **kwargs: Any) -> Any:
        call = signature(original).bind(*args, **kwargs)
        if call.arguments.get("transformers_explicit_filename") != MISSING_WEIGHTS:
            return original(*args, **kwargs)
        first: OSError | None = None
        for name in _weights_names(call.arguments):
            call.arguments["transformers_explicit_filename"] = name
            try:
                return original(*call.args, **call.kwargs)
            except OSError as error:  # No file of a repository is known until it is asked for.
                first = first or error
        assert first is not None
        raise first

    return resolve


def _weights_names(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the weights in a local folder, or all that a repository may have."""
    variant = given.get("variant")
    part = f".{variant}" if variant else ""
    # `save_pretrained` writes the last two, and trainers look for them.
    names = (*USUAL_NAMES, f"model{part}.safetensors", f"model.safetensors.index{part}.json")
    subfolder = given.get("subfolder") or (given.get("download_kwargs") or {}).get("subfolder") or ""
    folder = Path(given["pretrained_model_name_or_path"] or "", subfolder)
    return tuple(name for name in names if (folder / name).is_file()) or names


def _merges_configs(original: classmethod[Any, ..., Any]) -> classmethod[Any, ..., Any]:
    """Let the `quantization_config` that a caller gives say how the folder is loaded."""

    def merge(cls: type, quantization_config: Any, quantization_config_from_args: Any) -> Any:
        given, bound = quantization_config_from_args, original.__get__(None, cls)
        if not isinstance(given, EckartConfig):
            return bound(quantization_config, given)
        merged = bound(quantization_config, None)
        if not isinstance(merged, EckartConfig):
            return bound(quantization_config, given)  # It says that the two do not fit.
        merged.dequantize = given.dequantize
        return merged

    return classmethod(merge)


def _loads_folders(original: Any) -> classmethod[Any, ..., Any]:
    """Load the tensors of compressed folders by `load_folder`."""

    def load(cls: type, *args: Any, **kwargs: Any) -> Any:
        # A class method in some releases, a static one in others.
        bound = original.__get__(None, cls)
        arguments = signature(bound).bind(*args, **kwargs).arguments
        quantizer = options_of(arguments).get("hf_quantizer")
        if isinstance(quantizer, EckartQuantizer):
            return load_folder(bound, dict(arguments), quantizer.quantization_config)
        entry = getattr(arguments["model"].config, ECKART_ENTRY, None)
        if quantizer is None or not isinstance(entry, dict):
            return bound(*args, **kwargs)
        return load_folder(bound, dict(arguments), EckartConfig(**entry), others=quantizer)

    return classmethod(load)


def _saves_models(original: Callable[..., Any]) -> Callable[..., Any]:
    """Describe a model's factored layers while it is saved."""

    @wraps(original)
    def save(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        with described(self, original_names=kwargs.get("save_original_format", True)):
            return original(self, *args, **kwargs)

    return save


def _saves_files(original: Callable[..., None]) -> Callable[..., None]:
    """List the factored layers of a file in its metadata, so that it is known without the config."""

    @wraps(original)
    def save(
        tensors: Mapping[str, Any], filename: str | PathLike[str], metadata: Mapping[str, str] | None = None
    ) -> None:
        original(tensors, filename, metadata=with_layers(metadata, tensors))

    return save


def _saves_configs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Ask for the missing file in the config.json of a compressed model, where transformers drops it."""

    @wraps(original)
    def save(self: PretrainedConfig, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, save_directory, *args, **kwargs)
        entry = getattr(self, QUANTIZATION, None)  # A dict where no model was loaded.
        if entry is not None and dict(entry).get("quant_method") == QUANT_METHOD:
            path = Path(save_directory, CONFIG_NAME)
            document = json.loads(path.read_bytes()) | {WEIGHTS_NAME: MISSING_WEIGHTS}
            path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
        return result

    return save
