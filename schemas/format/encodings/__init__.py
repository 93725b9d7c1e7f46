"""The encodings of quantized weights: each says which tensors store one weight; the worker decodes them.

Those that store a weight below its own module are in the table, to which each module adds its own as it is
imported here. `mxfp4` stores all experts together, and `finding` asks for it by name.
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
