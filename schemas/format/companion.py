"""The other files of a model's folder: configuration, tokenizer, texts. Nothing of them is executed."""

from __future__ import annotations

import json
from json.scanner import py_make_scanner  # type: ignore[attr-defined] # not in the stubs
from typing import TYPE_CHECKING, Any

from schemas.format.encodings.quantization import MODELOPT_NAME
from schemas.format.errors import CheckpointError, quoted
from schemas.format.names import is_companion

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MAX_COMPANION_BYTES = 64 * 2**20
MAX_COMPANIONS_BYTES = 256 * 2**20
CONFIG_NAME = "config.json"
# Apart from MODULES_NAME and MODELOPT_NAME, the only companion that is parsed.
MAX_CONFIG_BYTES = 8 * 2**20
MAX_CONFIG_DEPTH = 64
# As objects they take a hundred bytes and more. The entry of a factored layer has eight in 300 bytes.
FREE_CONFIG_VALUES = 20_000
BYTES_PER_CONFIG_VALUE = 32
# The modules of a sentence-transformers model, each with its subfolder.
MODULES_NAME = "modules.json"
CARD_NAME = "README.md"


def companion_limit_bytes(name: str) -> int:
    return MAX_CONFIG_BYTES if name in {CONFIG_NAME, MODELOPT_NAME} else MAX_COMPANION_BYTES


def companions_in(folder: Path) -> tuple[str, ...]:
    """Return the names of the companions in a folder, without files that are too large for one."""
    return tuple(
        path.name
        for path in sorted(folder.iterdir())
        if is_companion(path.name)
        and path.is_file()
        and path.stat().st_size <= companion_limit_bytes(path.name)
    )


def module_folders(path: Path) -> tuple[str, ...]:
    """Return the subfolders that a modules.json names; none where it is missing or not readable."""
    try:
        with path.open("rb") as stream:
            modules = json.loads(stream.read(MAX_CONFIG_BYTES))
        return tuple(str(module["path"]) for module in modules if module["path"])
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return ()


def card_name(names: Iterable[str]) -> str:
    """Return the name of the model card among these files, or the usual one."""
    return next((name for name in names if name.lower() == CARD_NAME.lower()), CARD_NAME)


class _PatientDecoder(json.JSONDecoder):
    """The decoder that is written in Python, since the other one keeps all threads waiting until its end."""

    def __init__(self) -> None:
        super().__init__()
        self.scan_once = py_make_scanner(self)


def parse_config(raw: bytes | bytearray) -> dict[str, Any]:
    """Parse config.json as leniently as the libraries that read it, which take NaN, for example."""
    # Counted before anything is made of it; each value follows one of these.
    most = FREE_CONFIG_VALUES + len(raw) // BYTES_PER_CONFIG_VALUE
    if sum(map(raw.count, (b",", b"[", b"{"))) > most:
        raise _bad_config(f"it has more than {most} values in {len(raw)} bytes")
    try:
        config = json.loads(raw, cls=_PatientDecoder)
    except UnicodeDecodeError:
        raise _bad_config("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _bad_config(f"it is not JSON from {where} on; it begins with {_first(raw)}") from None
    except RecursionError:
        raise _bad_config("it is nested too deep") from None
    except ValueError:
        raise _bad_config("it has an integer of thousands of digits") from None
    if not isinstance(config, dict):
        raise _bad_config("it is not a JSON object")
    if _is_deeper(config, MAX_CONFIG_DEPTH):
        raise _bad_config(f"it is nested deeper than {MAX_CONFIG_DEPTH} levels")
    return config


def _bad_config(why: str) -> CheckpointError:
    return CheckpointError("bad-config", f"This is no {CONFIG_NAME} of a model: {why}. Send the model's own.")


def _first(raw: bytes | bytearray) -> str:
    return quoted(bytes(raw[:40]).decode(errors="replace"))


def _is_deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        inner = (list(each.values()) if isinstance(each, dict) else each for each in level)
        level = [one for each in inner for one in each if isinstance(one, dict | list)]
        if not level:
            return False
    return True
