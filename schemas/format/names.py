"""Names of a checkpoint and its files: legal ones, those of an index, and a legal name for any other."""

import re
import unicodedata
from collections.abc import Iterable

CHECKPOINT_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
# A checkpoint id that ends in `.safetensors`, or as an index does. Use both patterns with `fullmatch`.
FILE_NAME = re.compile(
    r"^(?!.{129})[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors(?:\.index(?:\.[A-Za-z0-9_-]+)*\.json)?$"
)
INDEX_ENDING = ".safetensors.index.json"
MAX_NAME_CHARACTERS = 128
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.safetensors")
_INDEX = re.compile(r".*\.safetensors\.index(?:\.[A-Za-z0-9_-]+)*\.json", re.DOTALL)
_ENDING = re.compile(r"\.safetensors(?:\.index(?:\.[^.]+)*\.json)?$", re.IGNORECASE)
_VARIANT = re.compile(r"(?P<model>.+)\.(?P<variant>[A-Za-z][A-Za-z0-9_-]*)")


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
    found = [name for name in names if name.endswith(".safetensors")]
    return found[0] if len(found) == 1 else None


def legal_file_name(name: str) -> str | None:
    """Return the name itself if it is legal, else a legal one made from it; None for another kind of file.

    A path before the name is dropped, and so are accents; other illegal characters become a hyphen.

    Examples
    --------
    >>> legal_file_name("models/modèle (1).SAFETENSORS")
    'modele-1.safetensors'
    """
    if FILE_NAME.fullmatch(name):
        return name
    base = re.split(r"[/\\]", name)[-1]
    found = _ENDING.search(base)
    if found is None:
        return None
    ending = legal_characters(found[0].lower())
    # The end of a long name is kept, for it holds the number of a shard.
    stem = legal_characters(base[: found.start()])[-(MAX_NAME_CHARACTERS - len(ending)) :].strip("._-")
    legal = f"{stem or 'model'}{ending}"
    return legal if FILE_NAME.fullmatch(legal) else None


def legal_characters(text: str) -> str:
    """Take letters apart from their accents, and put a hyphen in place of what no name may hold."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.sub(r"-*[^A-Za-z0-9._-]+-*", "-", letters)
