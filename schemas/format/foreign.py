"""Recognize files of other formats by their first bytes, so that an error can say what they are."""

from schemas.format.errors import CheckpointError

_CONVERT = "convert it to safetensors first"
_DECOMPRESS = "decompress it first"
_NO_PICTURE = "send the checkpoint's .safetensors file instead"

# Magic numbers: the first bytes, what they say of the file, and what to do about it.
_BINARY = (
    (b"PK\x03\x04", "it looks like a zip archive, such as a PyTorch .pt file", _CONVERT),
    (b"GGUF", "it looks like a GGUF file", _CONVERT),
    (b"\x89HDF\r\n\x1a\n", "it looks like an HDF5 file, such as a Keras .h5 file", _CONVERT),
    (b"\x1f\x8b", "it looks like gzip-compressed data", _DECOMPRESS),
    (b"\x28\xb5\x2f\xfd", "it looks like zstd-compressed data", _DECOMPRESS),
    (b"\xfd7zXZ\x00", "it looks like xz-compressed data", _DECOMPRESS),
    (b"BZh", "it looks like bzip2-compressed data", _DECOMPRESS),
    (b"7z\xbc\xaf\x27\x1c", "it looks like a 7z archive", _DECOMPRESS),
    (b"\x93NUMPY", "it looks like a NumPy .npy file", _CONVERT),
    (b"\x89PNG\r\n\x1a\n", "this is a picture (PNG)", _NO_PICTURE),
    (b"\xff\xd8\xff", "this is a picture (JPEG)", _NO_PICTURE),
    (b"GIF87a", "this is a picture (GIF)", _NO_PICTURE),
    (b"GIF89a", "this is a picture (GIF)", _NO_PICTURE),
    *(
        (bytes((0x80, protocol)), "it looks like a Python pickle, such as a PyTorch .bin file", _CONVERT)
        for protocol in range(2, 6)
    ),
)
# A length may begin with one of these characters, but no valid length is eight characters of text.
_TEXT = (
    (
        b"version ",
        "it looks like a git-LFS pointer instead of the file that it points to",
        "run `git lfs pull` and send the real file",
    ),
    (
        b"<",
        "it looks like an HTML or XML page, such as the error page of a failed download",
        "download the file again",
    ),
    (b"{", "it looks like JSON without the eight bytes of length before it", _CONVERT),
    (b"", "it looks like a text file", _CONVERT),
)
_PRINTABLE = frozenset(b"\t\n\r" + bytes(range(32, 127)))
# The errors that a file of another format may cause.
_AMBIGUOUS_FAULTS = frozenset(
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


def identify_format(first: bytes, error: CheckpointError) -> CheckpointError:
    """Return an error that names another format if the first eight bytes look like one, else `error`."""
    found = _other_format(first) if error.fault in _AMBIGUOUS_FAULTS else None
    return CheckpointError("other-format", f"This is not safetensors: {found}.") if found else error


def _other_format(first: bytes) -> str | None:
    is_text = bool(first) and _PRINTABLE.issuperset(first)
    formats = (*_BINARY, *_TEXT) if is_text else _BINARY
    matches = (f"{what}; {advice}" for start, what, advice in formats if first.lstrip().startswith(start))
    return next(matches, None)
