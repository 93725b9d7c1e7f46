"""Names of a checkpoint and its files: which are legal, which kind each means, and legal ones for others."""

import re
import unicodedata
from collections.abc import Iterable

from schemas.format.errors import quoted

MAX_NAME_CHARACTERS = 128
# Use these patterns with `fullmatch`.
CHECKPOINT_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
# A weight file or an index.
FILE_NAME = re.compile(
    r"^(?!.{129})[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors(?:\.index(?:\.[A-Za-z0-9_-]+)*\.json)?$"
)
# An index belongs to weight files, of whatever format.
COMPANION_NAME = re.compile(
    r"(?!.{129})(?!.*\.index\.)[A-Za-z0-9][A-Za-z0-9._-]*\.(?:json|txt|model|md|jinja)"
)
WEIGHT_ENDING = ".safetensors"
INDEX_ENDING = ".safetensors.index.json"
COMPANION_ENDINGS = (".json", ".txt", ".model", ".md", ".jinja")
# What a result has of its own. Some file systems do not tell upper from lower case.
TAKEN_NAMES = frozenset({"report.json"})
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.safetensors")
_INDEX = re.compile(r".*\.safetensors\.index(?:\.[A-Za-z0-9_-]+)*\.json", re.DOTALL)
_VARIANT = re.compile(r"(?P<model>.+)\.(?P<variant>[A-Za-z][A-Za-z0-9_-]*)")
# The ending of a name that may be illegal.
_ANY_ENDING = re.compile(
    r"\.(?:safetensors(?:\.index(?:\.[^.]+)*\.json)?|json|txt|model|md|jinja)$", re.IGNORECASE
)
# No file system has longer names; a client can send any.
_MAX_GIVEN_CHARACTERS = 255


def is_index(name: str) -> bool:
    """Whether a file is an index by its name; `model.safetensors.index.fp16.json` is that of a variant."""
    return _INDEX.fullmatch(name) is not None


def index_of(stem: str) -> str:
    """Return the usual name of an index whose shards are `<stem>-00001-of-00002.safetensors` and so on."""
    found = _VARIANT.fullmatch(stem)
    if found is None:
        return stem + INDEX_ENDING
    return f"{found['model']}{INDEX_ENDING.removesuffix('.json')}.{found['variant']}.json"


def single_weight_file(names: Iterable[str]) -> str | None:
    """Return the weight file if there is only one, be it with an index or without."""
    found = [name for name in names if name.endswith(WEIGHT_ENDING)]
    return found[0] if len(found) == 1 else None


def is_companion(name: str) -> bool:
    """Whether a file of this name is a companion, and neither weights nor an index."""
    return COMPANION_NAME.fullmatch(name) is not None and name.lower() not in TAKEN_NAMES


def is_file_name(name: str) -> bool:
    """Whether a checkpoint may have a file of this name: weights, an index or a companion."""
    return FILE_NAME.fullmatch(name) is not None or is_companion(name)


def legal_name(name: str) -> str | None:
    """Return the name itself if it is legal, else a legal one made from it; None for another kind of file.

    A path before the name is dropped, and so are accents; other illegal characters become a hyphen.

    Examples
    --------
    >>> legal_name("models/modèle (1).SAFETENSORS")
    'modele-1.safetensors'
    """
    if is_file_name(name):
        return name
    base = re.split(r"[/\\]", name)[-1][-_MAX_GIVEN_CHARACTERS:]
    found = _ANY_ENDING.search(base)
    if found is None:
        return None
    ending = _legal_characters(found[0].lower())
    # The end of a long name is kept, for it holds the number of a shard.
    stem = _legal_characters(base[: found.start()])[-(MAX_NAME_CHARACTERS - len(ending)) :].strip("._-")
    legal = f"{stem or 'model'}{ending}"
    return legal if is_file_name(legal) else None


def why_not(name: str) -> str:
    """Say why a file of this name cannot be part of a checkpoint."""
    if name.lower() in TAKEN_NAMES:
        return f"A result has a {name.lower()} of its own; rename this file, or leave it out."
    if ".index." in name and not name.endswith(WEIGHT_ENDING):
        return f"{quoted(name)} is no index of {WEIGHT_ENDING} files; leave it out."
    if not name.endswith((WEIGHT_ENDING, *COMPANION_ENDINGS)):
        endings = f"{', '.join(COMPANION_ENDINGS[:-1])} and {COMPANION_ENDINGS[-1]}"
        return (
            f"{quoted(name)} is of a type that is not taken: nothing is ever unpickled or executed. Weights "
            f"are {WEIGHT_ENDING} files with their index; beside them there may be {endings} files. Convert "
            "weights of another format, and leave out the rest."
        )
    return (
        f"{quoted(name)} cannot be the name of a file: it has at most 128 letters, digits, dots, underscores "
        "and hyphens, and begins with a letter or digit. Rename the file."
    )


def _legal_characters(text: str) -> str:
    """Take letters apart from their accents, and put a hyphen in place of what no name may hold."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.sub(r"[^A-Za-z0-9._]+", lambda run: run[0] if set(run[0]) == {"-"} else "-", letters)
