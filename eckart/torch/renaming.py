"""From the names in a file to the names in a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

Rename: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]] | Callable[[str], str]
# How many names of a file are looked up for a prefix, and how many prefixes are tried.
NAMES_TRIED, PREFIXES_TRIED = 16, 4


def renaming(rename: Rename | None) -> Callable[[str], str]:
    """Make a function of a mapping of whole names, of pairs of prefixes, or of a function."""
    if rename is None:
        return str
    if callable(rename):
        return rename
    if isinstance(rename, Mapping):
        names = dict(rename)
        return lambda name: _mapped(names, name)
    prefixes = list(rename)
    return lambda name: _with_prefix(prefixes, name)


def prefix_changes(stored: Iterable[str], wanted: Iterable[str]) -> list[tuple[str, str]]:
    """Return changes of a prefix that turn names of a file into names of a model, the most frequent first."""
    known = set(wanted)
    strange = [name for name in stored if name not in known]
    changes: Counter[tuple[str, str]] = Counter()
    for name in strange[:: max(len(strange) // NAMES_TRIED, 1)]:
        for other in known:
            if other.endswith("." + name):
                changes["", other.removesuffix(name)] += 1
            elif name.endswith("." + other):
                changes[name.removesuffix(other), ""] += 1
    return [change for change, _ in changes.most_common(PREFIXES_TRIED)]


def _mapped(names: Mapping[str, str], name: str) -> str:
    """Look up a tensor's name, or that of a module around it."""
    head, tail = name, ""
    while head:
        if head in names:
            return names[head] + tail
        head, dot, last = head.rpartition(".")
        tail = dot + last + tail
    return name


def _with_prefix(prefixes: Iterable[tuple[str, str]], name: str) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
