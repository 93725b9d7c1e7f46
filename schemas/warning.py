"""Warnings in a document: the first of them, and a count, so that no request makes a document large."""

from collections.abc import Iterable

MAX_WARNINGS = 20


def first_warnings(warnings: Iterable[str]) -> tuple[str, ...]:
    """Return the first twenty, and how many more there are."""
    found = tuple(warnings)
    if len(found) <= MAX_WARNINGS:
        return found
    return (*found[:MAX_WARNINGS], f"and {len(found) - MAX_WARNINGS} more warnings")
