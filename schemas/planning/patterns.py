"""Patterns of a spec, compiled once: shell patterns on names of modules, or on their last parts."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import translate

# A pattern with this prefix is matched with the last part of a module's name, case aside.
LAST = "last:"
_wildcard = re.compile(r"[*?\[]").search


def without_prefix(pattern: str) -> str:
    """Return the shell pattern of a spec's pattern."""
    return pattern.removeprefix(LAST)


class Patterns:
    """A list of patterns. Those without a wildcard cost one look-up together, the others a match each."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._exact: dict[str, int] = {}
        self._whole: list[tuple[int, re.Pattern[str]]] = []
        self._last: list[tuple[int, re.Pattern[str]]] = []
        # There are few different last parts.
        self._found_last: dict[str, int | None] = {}
        for number, pattern in enumerate(patterns):
            if pattern.startswith(LAST):
                compiled = re.compile(translate(without_prefix(pattern).lower()))
                self._last.append((number, compiled))
            elif _wildcard(pattern):
                self._whole.append((number, re.compile(translate(pattern))))
            else:
                self._exact.setdefault(pattern, number)

    def find(self, module: str) -> int | None:
        """Return the number of the first pattern that fits a module's name, or None."""
        last = self._find_last(module.rpartition(".")[2]) if self._last else None
        found = (self._exact.get(module), last, _first(module, self._whole))
        return min((number for number in found if number is not None), default=None)

    def fit(self, module: str) -> bool:
        """Return whether any pattern fits a module's name."""
        return self.find(module) is not None

    def _find_last(self, part: str) -> int | None:
        if part not in self._found_last:
            self._found_last[part] = _first(part.lower(), self._last)
        return self._found_last[part]


def _first(name: str, patterns: Iterable[tuple[int, re.Pattern[str]]]) -> int | None:
    return next((number for number, pattern in patterns if pattern.match(name)), None)
