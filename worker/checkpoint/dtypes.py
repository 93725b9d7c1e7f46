"""The dtypes of safetensors and of torch."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from schemas.checkpoint import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Six-bit floats have no torch dtype, and torch packs two four-bit floats into one element of another shape.
TORCH_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "I8": torch.int8,
        "U16": torch.uint16,
        "I16": torch.int16,
        "U32": torch.uint32,
        "I32": torch.int32,
        "U64": torch.uint64,
        "I64": torch.int64,
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "C64": torch.complex64,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E8M0": torch.float8_e8m0fnu,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    }
)
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def torch_dtype(name: str) -> torch.dtype:
    """
    Return the torch dtype of a safetensors dtype.

    Parameters
    ----------
    name : str
        A safetensors dtype, such as ``"BF16"``.

    Raises
    ------
    CheckpointError
        With code ``dtype-not-readable``, if torch cannot hold such a tensor in its own shape.
    """
    if name not in TORCH_DTYPES:
        raise CheckpointError("dtype-not-readable", f"Tensors of dtype {name} can be copied, but not read.")
    return TORCH_DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """
    Return the safetensors dtype of a torch dtype.

    Parameters
    ----------
    dtype : torch.dtype
        A torch dtype, such as ``torch.bfloat16``.

    Raises
    ------
    CheckpointError
        With code ``dtype-not-writable``, if safetensors has no such dtype.
    """
    if dtype not in _NAMES:
        raise CheckpointError("dtype-not-writable", f"safetensors has no dtype for {dtype}.")
    return _NAMES[dtype]
