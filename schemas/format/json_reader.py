"""A cursor over JSON text that yields one small value at a time, so that a bomb never becomes objects."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from schemas.format.errors import CheckpointError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

# Almost every value fits the first window; none that a checkpoint needs exceeds the second.
SHORT_CHARACTERS, LONG_CHARACTERS = 512, 65_536
# A tensor's entry is three deep; what a decoder bears depends on its stack.
MAX_DEPTH = 64
# The longest integer below 2**63; a longer one overflows whatever reads it next.
MAX_INTEGER_DIGITS = 19

_space = re.compile(r"[ \t\n\r]*").match
_closed_string = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL).match
_bracket_or_string = re.compile(r'[][{}]|"(?:[^"\\]|\\.)*+"').finditer
_loose = re.compile(r"-?(?:NaN|Infinity)|//|/\*|#|'").match


class NumberText(str):
    """The text of a JSON number that is not a plain integer of at most 19 digits."""

    __slots__ = ()


class _NotJson(Exception):  # noqa: N818 - a signal between a decoder hook and its caller, never seen outside
    pass


def _integer(digits: str) -> int | NumberText:
    plain = len(digits.lstrip("-")) <= MAX_INTEGER_DIGITS and digits != "-0"
    return int(digits) if plain else NumberText(digits)


def _constant(token: str) -> None:
    raise _NotJson(token)


def _is_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for found in _bracket_or_string(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > MAX_DEPTH:
            return True
    return False


# Objects come as tuples of pairs, so that repeated keys stay visible.
_decode = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=_integer, parse_float=NumberText, parse_constant=_constant
).raw_decode


class JsonReader:
    """Reads `text`, whose first byte is byte `base` of its file."""

    def __init__(self, text: str, *, base: int) -> None:
        self.text = text
        self.at = 0
        self._base = base

    def peek(self) -> str:
        """Skip whitespace and return the next character; empty at the end."""
        self.at = _space(self.text, self.at).end()  # type: ignore[union-attr]
        return self.text[self.at : self.at + 1]

    def expect(self, wanted: str, name: str) -> str:
        """Step over the next character, which must be one of `wanted`."""
        found = self.peek()
        if not found or found not in wanted:
            raise self.unexpected(name)
        self.at += 1
        return found

    def check_opening(self) -> None:
        """Check that the text can be a JSON object by its first character."""
        found = self.peek()
        if found == "\ufeff":
            raise self.fault("byte-order-mark", "There is a byte order mark. Write plain UTF-8 without one.")
        if found and found in '["-0123456789tfn':
            raise self.fault("not-an-object", "One JSON object should stand here, and another value does.")
        if found != "{":
            raise self.unexpected("an object")

    def members(self) -> Iterator[str]:
        """Yield the keys of the object at the cursor; the caller reads each value before the next key."""
        self.expect("{", "an object")
        if self.peek() == "}":
            self.at += 1
            return
        closed = False
        while not closed:
            key = self.string()
            self.expect(":", "a colon")
            self.peek()
            yield key
            closed = self.expect(",}", "a comma or a closing brace") == "}"

    def string(self) -> str:
        self.peek()
        found = _closed_string(self.text, self.at)
        if found is None:
            self.expect('"', "a quoted string")
            raise self._ends_early()
        try:
            text, _ = _decode(found[0])
        except json.JSONDecodeError as error:
            raise self._malformed(error) from None
        self.at = found.end()
        return str(text)

    def value(self) -> Any:
        """Read the value at the cursor: objects as tuples of pairs, odd numbers as `NumberText`."""
        with suppress(json.JSONDecodeError):
            return self._decoded(SHORT_CHARACTERS)
        try:
            return self._decoded(LONG_CHARACTERS)
        except json.JSONDecodeError as error:
            raise self._malformed(error) from None

    def end(self) -> None:
        """Check that nothing but whitespace follows."""
        found = self.peek()
        if found == "\0":
            raise self.fault(
                "nul-padding", "NUL bytes follow the JSON. Only spaces, tabs and newlines may pad it."
            )
        if found:
            raise self.fault(
                "trailing-json", f"{quoted(found)} follows the JSON, where only whitespace may stand."
            )

    def unexpected(self, wanted: str) -> CheckpointError:
        """Tell the fault of not finding `wanted` at the cursor."""
        if loose := _loose(self.text, self.at):
            return self.loose(loose[0])
        found = self.peek()
        if not found:
            return self.fault("truncated-json", f"The JSON ends where {wanted} should stand.")
        return self.fault("not-json", f"Not valid JSON: found {quoted(found)} where {wanted} should stand.")

    def loose(self, token: str) -> CheckpointError:
        return self.fault(
            "loose-json",
            f"Not valid JSON: {token} (NaN, Infinity, comments and single quotes are not allowed).",
        )

    def fault(self, code: str, detail: str, pointer: str | None = None) -> CheckpointError:
        """Tell a fault at the cursor, with the byte of the file it stands at."""
        byte = self._base + len(self.text[: self.at].encode())
        return CheckpointError(code, f"{detail} (At byte {byte} of the file.)", pointer)

    def _decoded(self, window_characters: int) -> Any:
        """Read the value at the cursor if it ends within the window."""
        piece = self.text[self.at : self.at + window_characters]
        if _is_deep(piece):
            raise self.fault("nested-too-deep", f"A value is nested deeper than {MAX_DEPTH} levels.")
        try:
            value, length = _decode(piece)
        except _NotJson as error:
            raise self.loose(str(error)) from None
        self.at += length
        return value

    def _malformed(self, error: json.JSONDecodeError) -> CheckpointError:
        """Name what is wrong with the value at the cursor, at the place where the decoder gave up."""
        is_cut = self.at + LONG_CHARACTERS < len(self.text)
        start, self.at = self.at, self.at + error.pos
        # A string without an end is reported where it begins, an escape that the window cuts likewise.
        unclosed = self.text[self.at : self.at + 1] == '"' and not _closed_string(
            self.text, self.at, start + LONG_CHARACTERS
        )
        if is_cut and (unclosed or error.pos > LONG_CHARACTERS - 8):
            return self.fault(
                "value-too-long", f"A value takes more than {LONG_CHARACTERS} characters; none needs as many."
            )
        if unclosed or self.at >= len(self.text):
            return self._ends_early()
        if loose := _loose(self.text, self.at):
            return self.loose(loose[0])
        return self.fault("not-json", f"Not valid JSON: unexpected {quoted(self.text[self.at])}.")

    def _ends_early(self) -> CheckpointError:
        return self.fault("truncated-json", "The JSON ends in the middle of a value.")
