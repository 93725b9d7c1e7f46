"""Patterns of a spec, compiled once: shell patterns on names of modules, or on their last parts."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import translate

# A pattern with this prefix is matched with the last part of a module's name, or with as many last parts as
# it has itself, case aside.
LAST = "last:"
Compiled = tuple[int, re.Pattern[str]]
_wildcard = re.compile(r"[*?\[]").search


def without_prefix(pattern: str) -> str:
    """Return the shell pattern of a spec's pattern."""
    return pattern.removeprefix(LAST)


class Patterns:
    """A list of patterns. Those without a wildcard cost one look-up together, the others a match each."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._exact: dict[str, int] = {}
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

    def find(self, module: str) -> int | None:
        """Return the number of the first pattern that fits a module's name, or None."""
        found = [self._find_last(module, count) for count in self._last]
        found += (self._exact.get(module), _first(module, self._whole))
        return min((number for number in found if number is not None), default=None)

    def fit(self, module: str) -> bool:
        """Return whether any pattern fits a module's name."""
        return self.find(module) is not None

    def _find_last(self, module: str, count: int) -> int | None:
        parts = module.rsplit(".", count)[-count:]
        if len(parts) < count:
            return None
        ending = ".".join(parts)
        if ending not in self._found_last:
            self._found_last[ending] = _first(ending.lower(), self._last[count])
        return self._found_last[ending]


def _compile(number: int, pattern: str) -> Compiled:
    return number, re.compile(translate(pattern))


def _first(name: str, patterns: Iterable[Compiled]) -> int | None:
    return next((number for number, pattern in patterns if pattern.match(name)), None)
