"""The quantizer of the method `eckart`: it only loads, and leaves an ordinary model behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from eckart.model_folder import QUANTIZATION, WEIGHTS_NAME
from eckart.transformers.loading import restore_zero_biases

if TYPE_CHECKING:
    from eckart.transformers.config import EckartConfig

# What transformers notes on a quantized model and its configs, some of it only in some releases.
MODEL_NOTES = ("hf_quantizer", "quantization_method", "is_quantized")
CONFIG_NOTES = ("_pre_quantization_dtype", "_is_quantized", WEIGHTS_NAME)


class EckartQuantizer(HfQuantizer):
    """Carries a folder's entry through `from_pretrained`; `eckart.transformers.loading` does the work."""

    requires_calibration = True  # It cannot compress a model that is loaded dense.
    quantization_config: EckartConfig

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:  # noqa: FBT001 - not our signature
        return safe_serialization is not False

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def _convert_model_for_quantization(self, model: Any) -> None:
        """Change nothing; the base class asks for accelerate here in transformers 4."""

    def _process_model_before_weight_loading(self, model: Any, **_kwargs: Any) -> Any:
        return model

    def _process_model_after_weight_loading(self, model: Any, **_kwargs: Any) -> Any:
        return model

    def postprocess_model(self, model: PreTrainedModel, **_kwargs: Any) -> PreTrainedModel:
        """Make the model an ordinary one, which can be cast, trained and saved as such."""
        restore_zero_biases(model)
        for name in MODEL_NOTES:
            vars(model).pop(name, None)
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                for name in CONFIG_NOTES:
                    vars(module.config).pop(name, None)
        if not self.quantization_config.layers:
            vars(model.config).pop(QUANTIZATION, None)
        return model
