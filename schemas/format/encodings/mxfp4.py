"""Floats of four bits with a power of two for each 32, in stacks of experts, as gpt-oss is published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.format.encodings.base import DECODED_DTYPE, SCALE, VALUES, Encoded, EncodedWeight, Part
from schemas.format.encodings.quantization import MXFP4
from schemas.format.stacks import ENDINGS, Expert

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from schemas.format.encodings.quantization import Quantization
    from schemas.format.tensor import TensorInfo

NAME = "mxfp4"
BLOCKS, SCALES = "_blocks", "_scales"
GROUP = 32


def find_stacks(
    tensors: Sequence[TensorInfo], quantization: Quantization
) -> Iterator[tuple[TensorInfo, TensorInfo, list[EncodedWeight]]]:
    """Yield the two tensors of each stack, and its experts, which are [inputs, outputs] once decoded."""
    if quantization.method != MXFP4:
        return
    named: Mapping[str, TensorInfo] = {
        tensor.name: tensor for tensor in tensors if tensor.dtype == "U8" and len(tensor.shape) in {3, 4}
    }
    for name, blocks in named.items():
        stem = name.removesuffix(BLOCKS)
        scales = named.get(stem + SCALES)
        if stem == name or scales is None or not stem.endswith(ENDINGS):
            continue
        if len(blocks.shape) == 4 and blocks.shape == (*scales.shape, GROUP // 2):
            yield blocks, scales, _experts(stem, blocks, scales)


def _experts(stem: str, blocks: TensorInfo, scales: TensorInfo) -> list[EncodedWeight]:
    experts, outputs, groups = scales.shape
    parts = (
        Part(VALUES, BLOCKS[1:], blocks.dtype, blocks.shape[1:]),
        Part(SCALE, SCALES[1:], scales.dtype, scales.shape[1:]),
    )
    encoded = Encoded(DECODED_DTYPE, (groups * GROUP, outputs), NAME, parts, (), (1, GROUP))
    expert = Expert(experts, (BLOCKS, SCALES))
    return [
        EncodedWeight(f"{stem}.{number}.weight", encoded, blocks, expert, transposed=True)
        for number in range(experts)
    ]
