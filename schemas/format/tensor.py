"""One tensor of a safetensors file: its name, dtype, shape and offsets, and every check on them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from schemas.format.errors import CheckpointError, escaped, pointer, quoted
from schemas.format.json_reader import NumberText

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.format.json_reader import JsonReader

# Torch and file systems read sizes and offsets as signed 64-bit integers.
MAX_SIZE = 2**63 - 1
MAX_DIMENSIONS = 8
MAX_NAME_BYTES = 1024
# Of a file, and of a checkpoint, however many files it has. No known model has a third of these.
MAX_TENSORS = 500_000
# The only key of a header that names no tensor.
METADATA_KEY = "__metadata__"
# How the names of a module's tensors end.
WEIGHT, BIAS = ".weight", ".bias"

# fmt: off
DTYPE_BITS: Mapping[str, int] = MappingProxyType({
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
})
# fmt: on
# Weights of these dtypes can be factored; weights of all others are copied.
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})

_ENTRY_KEYS = dict.fromkeys(("dtype", "shape", "data_offsets")).keys()
# C0 and C1 controls, line and paragraph separators, and the marks that reorder text on a screen.
CONTROLS = "\\x00-\\x1f\\x7f-\\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_control = re.compile(f"[{CONTROLS}]").search


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file; `start` and `end` are byte offsets into the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


def alignment_bytes(dtype: str) -> int:
    """Return the alignment of a dtype's data: the size of an element, but at least one byte."""
    return max(1, DTYPE_BITS[dtype] // 8)


def check_name(name: str, reader: JsonReader) -> None:
    """Check that a tensor's name is printable text of 1 to 1024 bytes."""
    if 0 < len(name) <= MAX_NAME_BYTES and name.isascii() and name.isprintable():
        return
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise reader.error(
            "lone-surrogate", f"The name {quoted(name)} contains half of a surrogate pair."
        ) from None
    if not name:
        raise reader.error("empty-name", "A tensor has an empty name. Give it one.")
    if size_bytes > MAX_NAME_BYTES:
        raise reader.error(
            "name-too-long",
            f"The name {quoted(name)} takes {size_bytes} bytes; at most {MAX_NAME_BYTES} are allowed.",
        )
    if found := _control(name):
        raise reader.error(
            "control-character",
            f"The name {quoted(name)} contains the control character U+{ord(found[0]):04X}.",
        )


def parse_entry(reader: JsonReader, name: str) -> TensorInfo:
    """Read and check the entry of a tensor at the reader's position."""
    value = reader.value()
    if type(value) is not tuple:
        raise CheckpointError(
            "entry-not-object",
            f"Tensor {quoted(name)} must be an object with {', '.join(_ENTRY_KEYS)}.",
            pointer(name),
        )
    fields = dict(value)
    if fields.keys() != _ENTRY_KEYS or len(value) != len(_ENTRY_KEYS):
        raise _wrong_keys(name, value)
    dtype, shape = _dtype(name, fields["dtype"]), _shape(name, fields["shape"])
    start, end = _offsets(name, fields["data_offsets"])
    _check_size(name, dtype, shape, end - start)
    return TensorInfo(name, dtype, shape, start, end)


def _wrong_keys(name: str, pairs: tuple[tuple[str, Any], ...]) -> CheckpointError:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return CheckpointError(
                "duplicate-key",
                f"Tensor {quoted(name)} has the key {quoted(key)} twice.",
                pointer(name, key),
            )
        if key not in _ENTRY_KEYS:
            return CheckpointError(
                "unknown-key",
                f"Tensor {quoted(name)} has the unknown key {quoted(key)}; known keys are "
                f"{', '.join(_ENTRY_KEYS)}.",
                pointer(name, key),
            )
        seen.add(key)
    missing = ", ".join(key for key in _ENTRY_KEYS if key not in seen)
    return CheckpointError("missing-key", f"Tensor {quoted(name)} lacks {missing}.", pointer(name))


def _dtype(name: str, value: Any) -> str:
    if type(value) is not str or value not in DTYPE_BITS:
        raise CheckpointError(
            "unknown-dtype",
            f"Tensor {quoted(name)} has the unknown dtype {_describe(value)}; known dtypes are "
            f"{', '.join(DTYPE_BITS)}.",
            pointer(name, "dtype"),
        )
    return value


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if type(value) is not list:
        raise CheckpointError(
            "bad-shape",
            f"Tensor {quoted(name)}: shape must be a list of sizes, not {_describe(value)}.",
            pointer(name, "shape"),
        )
    if len(value) > MAX_DIMENSIONS:
        raise CheckpointError(
            "too-many-dimensions",
            f"Tensor {quoted(name)} has {len(value)} dimensions; at most {MAX_DIMENSIONS} are allowed.",
            pointer(name, "shape"),
        )
    for axis, size in enumerate(value):
        if type(size) is not int or not 0 <= size <= MAX_SIZE:
            raise _bad_integer(
                "bad-shape", f"Tensor {quoted(name)}: shape[{axis}]", size, pointer(name, "shape", axis)
            )
    return tuple(value)


def _check_size(name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
    bits = 1
    for factor in (*shape, DTYPE_BITS[dtype]):
        bits *= factor
        if bits > MAX_SIZE:
            raise CheckpointError(
                "size-overflow",
                f"Tensor {quoted(name)}: {dtype} {list(shape)} has more than 2^63 - 1 bits.",
                pointer(name, "shape"),
            )
    if bits % 8:
        raise CheckpointError(
            "sub-byte",
            f"Tensor {quoted(name)}: {dtype} {list(shape)} needs {bits} bits, not a multiple of 8.",
            pointer(name, "shape"),
        )
    if bits != nbytes * 8:
        raise CheckpointError(
            "size-mismatch",
            f"Tensor {quoted(name)}: {dtype} {list(shape)} needs {bits // 8} bytes, but its offsets span "
            f"{nbytes}.",
            pointer(name, "data_offsets"),
        )


def _offsets(name: str, value: Any) -> tuple[int, int]:
    if type(value) is list and len(value) == 2:
        start, end = value
        if type(start) is int and type(end) is int and 0 <= start <= end <= MAX_SIZE:
            return start, end
    raise _bad_offsets(name, value)


def _bad_offsets(name: str, value: Any) -> CheckpointError:
    place = pointer(name, "data_offsets")
    subject = f"Tensor {quoted(name)}: data_offsets"
    if type(value) is not list or len(value) != 2:
        return CheckpointError(
            "bad-offsets", f"{subject} must be a list of two integers, begin and end.", place
        )
    for side, offset in zip(("begin", "end"), value, strict=True):
        if type(offset) is int and offset < 0:
            return CheckpointError("negative-offset", f"{subject} have a negative {side}, {offset}.", place)
        if type(offset) is not int or offset > MAX_SIZE:
            return _bad_integer("bad-offsets", f"{subject} {side}", offset, place)
    start, end = value
    return CheckpointError(
        "reversed-offsets", f"{subject} end at {end}, before they begin at {start}.", place
    )


def _bad_integer(fault: str, subject: str, value: Any, place: str) -> CheckpointError:
    digits = str(value).lstrip("-")
    if type(value) in {int, NumberText} and digits.isdigit() and int(digits[:20]) > MAX_SIZE:
        return CheckpointError(
            "integer-too-large", f"{subject} is {escaped(str(value))}, which exceeds 2^63 - 1.", place
        )
    return CheckpointError(
        fault, f"{subject} must be an integer of at least 0, not {_describe(value)}.", place
    )


def _describe(value: Any) -> str:
    """Describe a JSON value in a few words."""
    if isinstance(value, tuple | list):
        return "an object" if isinstance(value, tuple) else "a list"
    if isinstance(value, NumberText):
        return escaped(value)
    return quoted(value) if isinstance(value, str) else json.dumps(value)
