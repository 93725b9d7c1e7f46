"""Tables and paragraphs of plain text, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH = 100
GAP = "  "


def columns(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Align a table: the first column to the left and shortened to what the others leave."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - len(GAP) * (len(widths) - 1))
    return [_line(row, widths) for row in (header, tuple("-" * width for width in widths), *rows)]


def _line(row: tuple[str, ...], widths: Sequence[int]) -> str:
    first = f"{cut(row[0], widths[0]):<{widths[0]}}"
    return GAP.join((first, *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))))


def page(*sections: Sequence[str]) -> str:
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def cut(text: str, width: int) -> str:
    """Shorten in the middle: the beginning shows the part of the model, the end the layer."""
    if len(text) <= width:
        return text
    tail = (width - 3) * 2 // 3
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"


def plain(text: str) -> str:
    """Escape all but printable ASCII: names come from untrusted files and go to a terminal."""
    return text if text.isascii() and text.isprintable() else ascii(text)[1:-1]


def listing(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Align a list to the left and cut nothing: a reader copies ids, and other commands read columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    padded = [
        [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in (header, *rows)
    ]
    return [GAP.join(row).rstrip() for row in padded]
