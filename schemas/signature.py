"""What other formats begin with, so that a wrong file is called by its name."""

from __future__ import annotations

from schemas.fault import CheckpointError

_BINARY = (
    (b"PK\x03\x04", "a zip archive, such as a PyTorch .pt file"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as a Keras .h5 file"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
    (b"\xfd7zXZ\x00", "xz-compressed data"),
    (b"BZh", "bzip2-compressed data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x93NUMPY", "a NumPy .npy file"),
    *((bytes((0x80, protocol)), "a Python pickle, such as a PyTorch .bin file") for protocol in range(2, 6)),
)
# A header's length may begin with one of these characters, but is never eight characters of text.
_TEXT = (
    (b"version ", "a git-LFS pointer instead of the file it points to; run `git lfs pull`"),
    (b"<", "an HTML or XML page, perhaps the error page of a download"),
    (b"{", "a JSON text without the eight bytes of length before it"),
    (b"", "a text file"),
)
_PRINTABLE = frozenset(b"\t\n\r" + bytes(range(32, 127)))
# Faults that a file of another format shows as well.
_ALIKE = frozenset(
    {
        "big-endian-length",
        "header-length-overflow",
        "header-past-end",
        "header-too-large",
        "loose-json",
        "no-header",
        "not-an-object",
        "not-json",
        "not-utf8",
        "too-short",
    }
)


def recognised(first: bytes, fault: CheckpointError) -> CheckpointError:
    """Return `fault`, or the fault of being another format if the first eight bytes look like one."""
    found = looks_like(first) if fault.code in _ALIKE else None
    if found is None:
        return fault
    return CheckpointError(
        "other-format", f"This is not safetensors: it looks like {found}. Convert it first."
    )


def looks_like(first: bytes) -> str | None:
    is_text = bool(first) and _PRINTABLE.issuperset(first)
    known = (*_BINARY, *_TEXT) if is_text else _BINARY
    return next((told for start, told in known if first.lstrip().startswith(start)), None)
