"""The encodings of quantized weights: each says which tensors store one weight; the worker decodes them.

All modules of this package are imported, so that each adds its encoding to the table.
"""

from schemas.format.encodings import fp8_block, fp8_scaled, nvfp4, packed
from schemas.format.encodings.base import ENCODINGS, Encoded, EncodedWeight
from schemas.format.encodings.finding import PlannedTensors, find_weights
from schemas.format.encodings.quantization import Quantization, read_quantization

__all__ = [
    "ENCODINGS",
    "Encoded",
    "EncodedWeight",
    "PlannedTensors",
    "Quantization",
    "find_weights",
    "fp8_block",
    "fp8_scaled",
    "nvfp4",
    "packed",
    "read_quantization",
]
