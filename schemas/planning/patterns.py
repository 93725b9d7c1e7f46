"""Patterns of a spec, compiled once: shell patterns on names of modules, or on their last parts."""

import re
from collections.abc import Iterable, Sequence

from schemas.planning import glob

# A pattern with this prefix is matched with the last part of a module's name, or with as many last parts as
# it has itself, case aside.
LAST = "last:"
Compiled = tuple[int, glob.Glob]
_wildcard = re.compile(r"[*?\[]").search


def without_prefix(pattern: str) -> str:
    """Return the shell pattern of a spec's pattern."""
    return pattern.removeprefix(LAST)


class Patterns:
    """A list of patterns. Those without a wildcard cost one look-up together, the others a match each."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._exact: dict[str, int] = {}
        self._every_exact: list[tuple[int, str]] = []
        self._whole: list[Compiled] = []
        # By the number of parts.
        self._last: dict[int, list[Compiled]] = {}
        # There are few different last parts.
        self._found_last: dict[str, int | None] = {}
        for number, pattern in enumerate(patterns):
            if pattern.startswith(LAST):
                parts = without_prefix(pattern).lower()
                self._last.setdefault(1 + parts.count("."), []).append(_compile(number, parts))
            elif _wildcard(pattern):
                self._whole.append(_compile(number, pattern))
            else:
                self._exact.setdefault(pattern, number)
                self._every_exact.append((number, pattern))

    def find(self, module: str) -> int | None:
        """Return the number of the first pattern that fits a module's name, or None."""
        found = [self._find_last(module, count) for count in self._last]
        if self._exact:
            found.append(self._exact.get(module))
        if self._whole:
            found.append(_first(module, self._whole))
        return min((number for number in found if number is not None), default=None) if found else None

    def fit(self, module: str) -> bool:
        """Return whether any pattern fits a module's name."""
        return self.find(module) is not None

    def idle(self, modules: Iterable[str]) -> list[int]:
        """Return the numbers of the patterns that fit none of these modules."""
        names = set(modules)
        endings = {count: _endings(names, count) for count in self._last}
        idle = [number for number, name in self._every_exact if name not in names]
        idle += [number for number, pattern in self._whole if not any(map(pattern.fits, names))]
        for count, patterns in self._last.items():
            idle += [number for number, pattern in patterns if not any(map(pattern.fits, endings[count]))]
        return sorted(idle)

    def _find_last(self, module: str, count: int) -> int | None:
        ending = _last_parts(module, count)
        if ending is None:
            return None
        if ending not in self._found_last:
            self._found_last[ending] = _first(ending.lower(), self._last[count])
        return self._found_last[ending]


def matching_ns(patterns: Iterable[str], names: Iterable[str]) -> int:
    """Return how many nanoseconds it takes at worst to match the patterns with the names.

    A pattern without a wildcard is looked up.
    """
    matched = [pattern for pattern in patterns if pattern.startswith(LAST) or _wildcard(pattern)]
    if not matched:
        return 0
    distinct = set(names)
    sizes = {0: _size(distinct)}
    total = 0
    for pattern in matched:
        count = 1 + pattern.count(".") if pattern.startswith(LAST) else 0
        if count not in sizes:
            sizes[count] = _size(_endings(distinct, count))
        number, characters = sizes[count]
        total += glob.matching_ns(without_prefix(pattern), names=number, characters=characters)
    return total


def _size(names: set[str]) -> tuple[int, int]:
    return len(names), sum(map(len, names))


def _endings(names: Iterable[str], count: int) -> set[str]:
    """Return the last parts of all names that have as many."""
    return {ending.lower() for name in names if (ending := _last_parts(name, count)) is not None}


def _last_parts(module: str, count: int) -> str | None:
    parts = module.rsplit(".", count)[-count:]
    return None if len(parts) < count else ".".join(parts)


def _compile(number: int, pattern: str) -> Compiled:
    return number, glob.Glob(pattern)


def _first(name: str, patterns: Iterable[Compiled]) -> int | None:
    return next((number for number, pattern in patterns if pattern.fits(name)), None)
