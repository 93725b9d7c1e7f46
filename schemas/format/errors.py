"""CheckpointError, and functions that quote untrusted text safely in its messages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN_CHARACTERS = 80
NAMES_LISTED = 5


class CheckpointError(ValueError):
    """A checkpoint, or one of its files, cannot be used; `fault` is stable, `detail` is for people."""

    def __init__(self, fault: str, detail: str, pointer: str | None = None) -> None:
        super().__init__(fault, detail, pointer)
        self.fault = fault
        self.detail = detail
        self.pointer = pointer

    def __str__(self) -> str:
        return self.detail


def escaped(text: str) -> str:
    """Make untrusted text safe to print: shorten it, and escape it unless every character is printable."""
    short = _shortened(text)
    return short if short.isprintable() else json.dumps(short)[1:-1]


def quoted(text: str) -> str:
    """Make untrusted text safe to print as a JSON string."""
    short = _shortened(text)
    return json.dumps(short, ensure_ascii=not short.isprintable())


def listed(names: Sequence[str]) -> str:
    """Join the first five names, and count the rest."""
    first = ", ".join(names[:NAMES_LISTED])
    return first if len(names) <= NAMES_LISTED else f"{first} and {len(names) - NAMES_LISTED} more"


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 20]}…{text[-19:]}"


def pointer(*parts: str | int) -> str:
    """Build a JSON pointer (RFC 6901) into the header or index; long parts are shortened."""
    return "".join("/" + escaped(str(part)).replace("~", "~0").replace("/", "~1") for part in parts)
