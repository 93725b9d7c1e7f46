"""The other files of a model's folder: configuration, tokenizer, texts. Nothing of them is executed."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from schemas.format.errors import CheckpointError, quoted
from schemas.format.names import FILE_NAME, legal_characters, legal_file_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MAX_COMPANION_BYTES = 64 * 2**20
MAX_COMPANIONS_BYTES = 256 * 2**20
CONFIG_NAME = "config.json"
# The only companion that is parsed.
MAX_CONFIG_BYTES = 8 * 2**20
MAX_CONFIG_DEPTH = 64
CARD_NAME = "README.md"
COMPANION_ENDINGS = (".json", ".txt", ".model", ".md", ".jinja")
_ENDINGS = f"{', '.join(COMPANION_ENDINGS[:-1])} and {COMPANION_ENDINGS[-1]}"
_MAX_STEM = 121
WEIGHTS = ".safetensors"
# Use it with `fullmatch`. An index belongs to weight files, of whatever format.
COMPANION_NAME = re.compile(r"(?!.*\.index\.)[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.(?:json|txt|model|md|jinja)")
# What a result has of its own. Some file systems do not tell upper from lower case.
TAKEN_NAMES = frozenset({"report.json"})


def is_companion(name: str) -> bool:
    """Whether a file of this name is a companion, and neither weights nor an index."""
    return COMPANION_NAME.fullmatch(name) is not None and name.lower() not in TAKEN_NAMES


def is_file_name(name: str) -> bool:
    """Whether a checkpoint may have a file of this name: weights, an index or a companion."""
    return FILE_NAME.fullmatch(name) is not None or is_companion(name)


def legal_name(name: str) -> str | None:
    """Return a legal name for a file of a form, as `legal_file_name` does, also for a companion."""
    if is_file_name(name):
        return name
    base = re.split(r"[/\\]", name)[-1]
    stem, dot, ending = base.rpartition(".")
    made = legal_characters(stem)[-_MAX_STEM:].strip("._-") + dot + ending.lower()
    return legal_file_name(name) or (made if is_companion(made) else None)


def why_not(name: str) -> str:
    """Say why a file of this name cannot be part of a checkpoint."""
    if name.lower() in TAKEN_NAMES:
        return f"A result has a {name.lower()} of its own; rename this file, or leave it out."
    if ".index." in name and not name.endswith(WEIGHTS):
        return f"{quoted(name)} is no index of .safetensors files; leave it out."
    if not name.endswith((WEIGHTS, *COMPANION_ENDINGS)):
        return (
            f"{quoted(name)} is of a type that is not taken: nothing is ever unpickled or executed. Weights "
            f"are {WEIGHTS} files with their index; beside them there may be {_ENDINGS} files. Convert "
            "weights of another format, and leave out the rest."
        )
    return (
        f"{quoted(name)} cannot be the name of a file: it has at most 128 letters, digits, dots, underscores "
        "and hyphens, and begins with a letter or digit. Rename the file."
    )


def companion_limit_bytes(name: str) -> int:
    return MAX_CONFIG_BYTES if name == CONFIG_NAME else MAX_COMPANION_BYTES


def companions_in(folder: Path) -> tuple[str, ...]:
    """Return the names of the companions in a folder, without files that are too large for one."""
    return tuple(
        path.name
        for path in sorted(folder.iterdir())
        if is_companion(path.name)
        and path.is_file()
        and path.stat().st_size <= companion_limit_bytes(path.name)
    )


def card_name(names: Iterable[str]) -> str:
    """Return the name of the model card among these files, or the usual one."""
    return next((name for name in names if name.lower() == CARD_NAME.lower()), CARD_NAME)


def parse_config(raw: bytes | bytearray) -> dict[str, Any]:
    """Parse config.json as leniently as the libraries that read it, which take NaN, for example."""
    try:
        config = json.loads(raw)
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
