"""Load compressed checkpoints into torch models, save them, and multiply them out."""

from eckart.errors import missing_extra

try:
    import safetensors.torch  # noqa: F401 - which needs torch
except ModuleNotFoundError as error:
    raise missing_extra(error, "torch") from error

from eckart.torch.convolutions import LowRankConv, LowRankConvTranspose
from eckart.torch.decoders import DECODERS, Decoder
from eckart.torch.expansion import expand
from eckart.torch.layers import LowRankConv1D, LowRankLinear
from eckart.torch.loading import IncompatibleKeys, load_compressed
from eckart.torch.pivot import PivotConv1D, PivotLinear
from eckart.torch.quantized import QuantizedConv1D, QuantizedLinear
from eckart.torch.saving import save_compressed

__all__ = [
    "DECODERS",
    "Decoder",
    "IncompatibleKeys",
    "LowRankConv",
    "LowRankConv1D",
    "LowRankConvTranspose",
    "LowRankLinear",
    "PivotConv1D",
    "PivotLinear",
    "QuantizedConv1D",
    "QuantizedLinear",
    "expand",
    "load_compressed",
    "save_compressed",
]
