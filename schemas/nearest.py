"""The name that was probably meant by one that is not known."""

import difflib
from collections.abc import Iterable

# A name that has little in common with another is no misspelling of it.
LEAST_LIKENESS = 0.6


def nearest(name: str, known: Iterable[str], *, likeness: float = LEAST_LIKENESS) -> str | None:
    """Return the known name that is most like this one; None if none is like it."""
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=likeness)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that names the nearest known name, or all of them where none is near."""
    names = sorted(known)
    found = nearest(name, names)
    return f"; did you mean {found}?" if found else f"; known are {', '.join(names)}"
