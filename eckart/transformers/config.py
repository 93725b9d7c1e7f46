"""What a compressed folder's config.json says, and how the folder is to be loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from eckart.model_folder import QUANT_METHOD
from eckart.torch.manifest import layers_of_config

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from eckart.torch.manifest import FactoredLayer

VERSION = 1


class EckartConfig(QuantizationConfigMixin):
    """The entry of a compressed folder; with `dequantize=True`, its model is loaded with dense weights."""

    def __init__(
        self,
        layers: Mapping[str, Mapping[str, Any]] | None = None,
        version: int = VERSION,
        *,
        dequantize: bool = False,
        **_newer: Any,  # What a newer release of eckart writes.
    ) -> None:
        self.quant_method: Any = QUANT_METHOD
        self.version = version
        self.layers: Mapping[str, Mapping[str, Any]] = {} if layers is None else layers
        self.dequantize = dequantize
        self.entries()

    def entries(self) -> dict[str, FactoredLayer]:
        """Return the factored layers by their names in the files."""
        return layers_of_config({"version": self.version, "layers": self.layers})

    def keep_only(self, names: Collection[str]) -> None:
        """Drop all layers but these; the others have become dense."""
        self.layers = {name: entry for name, entry in self.layers.items() if name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json holds, which is not how the model was loaded."""
        return {"quant_method": QUANT_METHOD, "version": self.version, "layers": self.layers}
