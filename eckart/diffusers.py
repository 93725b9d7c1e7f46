"""Load whole pipelines of diffusers: the components that diffusers cannot load, since they are factored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.errors import LoadError, missing_extra
from eckart.model_folder import DIFFUSERS_CLASS, WEIGHTS_NAME, own_entry, read_config
from eckart.pipeline_folder import component_classes

try:
    import diffusers
    import torch

    import eckart.transformers  # noqa: F401 - diffusers lets transformers load its components
    from eckart.torch import load_compressed
except ModuleNotFoundError as error:
    if error.name == "diffusers":
        raise ModuleNotFoundError(f"{error.msg}: pip install diffusers", name=error.name) from error
    raise missing_extra(error, "transformers") from error

if TYPE_CHECKING:
    import os

__all__ = ["load_components"]


def load_components(folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Return the factored components of a pipeline's folder that are models of diffusers, by their names.

    Give them to `from_pretrained` of the pipeline's class, with the same dtype; it loads all others.
    """
    path = Path(folder)
    configs = {name: read_config(path / name) for name in component_classes(path)}
    return {
        name: _load(path / name, config[DIFFUSERS_CLASS], dtype)
        for name, config in configs.items()
        if own_entry(config) and DIFFUSERS_CLASS in config
    }


def _load(folder: Path, class_name: Any, dtype: torch.dtype) -> torch.nn.Module:
    kind = getattr(diffusers, str(class_name), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        raise LoadError(f"{folder}: this version of diffusers has no model {class_name!r}")
    untyped: Any = kind
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        config = untyped.load_config(folder)
        model: torch.nn.Module = untyped.from_config(
            {name: config[name] for name in config if name != WEIGHTS_NAME}
        )
    finally:
        torch.set_default_dtype(before)
    return load_compressed(model, folder).eval()
