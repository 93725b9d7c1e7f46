"""Convolutions in a plan: why one stays dense, how its factors are stored, and what to warn of."""

from collections.abc import Iterator

from schemas.format.errors import listed
from schemas.planning.codecs import CODECS, FLOAT_CODECS, KEEP, Codec, FloatCodec, codec_for
from schemas.planning.forms import KernelForm
from schemas.planning.layer import LayerPlan
from schemas.planning.layers import Layers
from schemas.report import KeptReason
from schemas.spec import CompressionSpec


def codec_of(choice: str, dtype: str, kernel: tuple[int, ...]) -> Codec:
    """Return how factors are stored; `choice` is the spec's `dtype`. Only matrices are stored as integers."""
    codec = codec_for(choice, dtype)
    return FLOAT_CODECS[dtype] if kernel and not isinstance(codec, FloatCodec) else codec


def kernel_reason(layer: LayerPlan, *, by_override: bool) -> KeptReason | None:
    """Return why a convolution stays dense whatever its rank, or None.

    A checkpoint does not tell [c, 1, …] of c groups from that of one input. Factors of either are right, but
    c groups would compute each of the shared filters c times, so that only an override asks for it.
    """
    form = layer.form
    if not isinstance(form, KernelForm):
        return None
    if layer.shape[1] == 1 and not by_override:
        return "depthwise"
    if not form.takes_kernel(layer.kernel):
        return "kernel_sides"
    return "transposed_kernel" if layer.transposed and not form.takes_transposed else None


def kernel_warnings(spec: CompressionSpec, layers: Layers) -> Iterator[str]:
    """Warn where `conv` has nothing to do, and where factors of convolutions are not stored as asked."""
    kernels = [layer for layer in layers.kinds if layer.kernel]
    if spec.conv is not None and not kernels:
        yield "conv: no convolution is selected"
    as_integers = spec.dtype != KEEP and not isinstance(CODECS[spec.dtype], FloatCodec)
    if as_integers and any(layer.reason is None for layer in kernels):
        names = [layer.name for layer in layers if layer.kernel and layer.reason is None]
        yield f"dtype: factors of convolutions keep the dtype of the weight, those of {listed(names)}"


def without_statistics(layer: LayerPlan) -> str | None:
    """Say why statistics of a convolution's inputs cannot be used, or None where they can."""
    form = layer.form
    if not isinstance(form, KernelForm):
        return None
    if not form.takes_statistics:
        return f"{form.name} has no best factors for unfolded inputs"
    return "the inputs of a transposed convolution are not unfolded" if layer.transposed else None
