"""The model card of a folder that was multiplied out, made from the card of the compressed one."""

from __future__ import annotations

import re

CARD_NAME = "readme.md"  # in lower case
# The service writes these before the parts of a compressed folder's card.
WHAT_IT_IS = b"<!-- eckart: what this folder is -->"
WHAT_WAS_DONE = b"<!-- eckart: what was done -->"
HOW_TO_RUN = b"<!-- eckart: how to run it -->"
NOTES = b"<!-- eckart: notes -->"
PARTS = re.compile(
    b"(?P<before>.*?)%s.*?(?P<done>%s.*?)%s(?P<run>.*?)(?P<after>%s.*)"
    % tuple(map(re.escape, (WHAT_IT_IS, WHAT_WAS_DONE, HOW_TO_RUN, NOTES))),
    re.DOTALL,
)
# The service knows the lines that run the dense folder, and hides them in the part on how to run it.
ONCE_EXPANDED = re.compile(rb"^<!-- eckart: once expanded\n(?P<lines>.*?)^-->$", re.DOTALL | re.MULTILINE)

INTRODUCTION = b"""
# Expanded from a model that Eckart compressed

Factors and integers are multiplied out here. The weights are dense again, with the original names and shapes:
as large as the original's, and as accurate as the compressed ones. The table says how those were made.
"""


def expanded_card(card: bytes) -> bytes | None:
    """Return the card of the dense folder: with another begin and other lines to run it, else as it is.

    None where the card is not the service's.
    """
    parts = PARTS.fullmatch(card)
    if parts is None:
        return None
    own = [WHAT_IT_IS, INTRODUCTION, parts["done"].rstrip(b"\n"), b"", HOW_TO_RUN, b"", _usage(parts["run"])]
    return parts["before"] + b"\n".join(own) + parts["after"]


def _usage(compressed: bytes) -> bytes:
    hidden = ONCE_EXPANDED.search(compressed)
    if hidden is None:
        return b"Load it as the model that was compressed, with that model's own library.\n\n"
    return b"Run it in this folder; it does not need eckart:\n\n```python\n%s```\n\n" % hidden["lines"]
