"""The decoders of quantized weights, by the name of the encoding; all modules add theirs to the table."""

from worker.encodings import fp8, mxfp4, nvfp4, packed
from worker.encodings.base import DECODERS, decode

__all__ = ["DECODERS", "decode", "fp8", "mxfp4", "nvfp4", "packed"]
