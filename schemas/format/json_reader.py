"""Reads JSON text one small value at a time, so that a JSON bomb never becomes objects."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from json.decoder import scanstring  # type: ignore[attr-defined] # not in the stubs
from typing import TYPE_CHECKING, Any

from schemas.format.cursor import Cursor
from schemas.format.errors import CheckpointError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

# Almost every value fits the first window; none that a checkpoint needs exceeds the second.
SHORT_CHARACTERS, LONG_CHARACTERS = 512, 65_536
# A tensor's entry is nested three deep; how deep a decoder can go depends on its stack.
MAX_DEPTH = 64
# The digits of the largest integer below 2**63; a longer one overflows in later readers.
MAX_INTEGER_DIGITS = 19
# What a message about a character quotes.
_TOKEN_CHARACTERS = 16

_space = re.compile(r"[ \t\n\r]*").match
_separator = re.compile(r"[ \t\n\r]*+([,}])").match
# A key without escapes, with its colon.
_plain_key = re.compile(r'[ \t\n\r]*+"([^"\\\x00-\x1f]*+)"[ \t\n\r]*+:[ \t\n\r]*+').match
_closed_string = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL).match
_bracket_or_string = re.compile(r'[][{}]|"(?:[^"\\]|\\.)*+"').finditer
_non_standard_token = re.compile(r"-?(?:NaN|Infinity)|//|/\*|#|'").match


class NumberText(str):
    """The text of a JSON number that is not a plain integer of at most 19 digits."""

    __slots__ = ()


class _NotJson(Exception):  # noqa: N818 - a signal from a decoder hook to its caller; it never leaves here
    pass


def _integer(digits: str) -> int | NumberText:
    plain = len(digits.lstrip("-")) <= MAX_INTEGER_DIGITS and digits != "-0"
    return int(digits) if plain else NumberText(digits)


def _constant(token: str) -> None:
    raise _NotJson(token)


def _value_end(text: str, begin: int) -> int | None:
    """Return where the list or object at `begin` ends, and None where it is nested too deep.

    What follows the value is not looked at, so that a text of many values is gone through once. A value
    without an end, one that is too long, and any other value end with the window.
    """
    depth, window_end = 0, begin + LONG_CHARACTERS
    if text[begin : begin + 1] not in {"[", "{"}:
        return window_end
    for found in _bracket_or_string(text, begin, window_end):
        depth += _STEPS.get(found[0], 0)
        if depth > MAX_DEPTH:
            return None
        if depth == 0:
            return found.end()
    return window_end


_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


# Objects come as tuples of pairs, so that repeated keys stay visible.
_decode = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=_integer, parse_float=NumberText, parse_constant=_constant
).raw_decode


class JsonReader(Cursor):
    """Reads the text at the cursor."""

    def peek(self) -> str:
        """Skip whitespace and return the next character; empty at the end."""
        while True:
            self.position = _space(self.text, self.position).end()  # type: ignore[union-attr]
            if found := self.text[self.position : self.position + 1]:
                return found
            if not self.fill(1):
                return ""

    def expect(self, allowed: str, name: str) -> str:
        """Consume the next character, which must be one of `allowed`."""
        found = self.peek()
        if not found or found not in allowed:
            raise self.unexpected(name)
        self.position += 1
        return found

    def check_opening(self) -> None:
        """Check by the first character that the text can be a JSON object."""
        found = self.peek()
        if found == "\ufeff":
            raise self.error("byte-order-mark", "There is a byte order mark. Write plain UTF-8 without one.")
        if found and found in '["-0123456789tfn':
            raise self.error("not-an-object", "Expected a JSON object, found another value.")
        if found != "{":
            raise self.unexpected("an object")

    def members(self) -> Iterator[str]:
        """Yield the keys of the object at the cursor; the caller reads each value before the next key."""
        self.expect("{", "an object")
        if self.peek() == "}":
            self.position += 1
            return
        closed = False
        while not closed:
            yield self._key()
            if plain := _separator(self.text, self.position):
                self.position = plain.end()
                closed = plain[1] == "}"
            else:
                closed = self.expect(",}", "a comma or a closing brace") == "}"

    def _key(self) -> str:
        """Read a key and its colon; the cursor is at its value afterwards."""
        plain = _plain_key(self.text, self.position)
        # Where the text ends with the colon, more space may follow it.
        if plain is not None and plain.end() < len(self.text):
            self.position = plain.end()
            return plain[1]
        key = self.string()
        self.expect(":", "a colon")
        self.peek()
        return key

    def string(self) -> str:
        more = self.peek() == '"'
        while more:
            with suppress(json.JSONDecodeError):
                text, self.position = scanstring(self.text, self.position + 1)
                return str(text)
            more = self.fill(2 * (len(self.text) - self.position) + 1)
        raise self._bad_string()

    def _bad_string(self) -> CheckpointError:
        """Build the error for what is no complete string, at the byte where it goes wrong."""
        found = _closed_string(self.text, self.position)
        if found is None:
            self.expect('"', "a quoted string")
            return self._ends_early()
        try:
            _decode(found[0])
        except json.JSONDecodeError as error:
            return self._malformed(error)
        raise AssertionError("the decoder took a string that the scanner refused")

    def value(self) -> Any:
        """Read the value at the cursor; objects become tuples of pairs, unusual numbers `NumberText`."""
        self.fill(LONG_CHARACTERS + 1)
        short = self.text[self.position : self.position + SHORT_CHARACTERS]
        # Few brackets cannot be deep, whatever they belong to.
        if short.count("[") + short.count("{") <= MAX_DEPTH:
            with suppress(json.JSONDecodeError):
                return self._decoded(short)
        end = _value_end(self.text, self.position)
        if end is None:
            raise self.error("nested-too-deep", f"A value is nested deeper than {MAX_DEPTH} levels.")
        try:
            return self._decoded(self.text[self.position : end])
        except json.JSONDecodeError as error:
            raise self._malformed(error) from None

    def end(self) -> None:
        """Check that nothing but whitespace follows."""
        found = self.peek()
        if found == "\0":
            raise self.error(
                "nul-padding", "NUL bytes follow the JSON. Only spaces, tabs and newlines may pad it."
            )
        if found:
            raise self.error(
                "trailing-json", f"{quoted(found)} follows the JSON, where only whitespace is allowed."
            )

    def unexpected(self, expected: str) -> CheckpointError:
        """Build the error for a cursor that is not at what was expected."""
        self.fill(_TOKEN_CHARACTERS)
        if loose := _non_standard_token(self.text, self.position):
            return self._non_standard(loose[0])
        found = self.peek()
        if not found:
            return self.error("truncated-json", f"The JSON ends where {expected} is expected.")
        return self.error("not-json", f"Not valid JSON: expected {expected}, found {quoted(found)}.")

    def _non_standard(self, token: str) -> CheckpointError:
        return self.error(
            "loose-json",
            f"Not valid JSON: {token} (NaN, Infinity, comments and single quotes are not allowed).",
        )

    def error(self, fault: str, detail: str, pointer: str | None = None) -> CheckpointError:
        """Build an error that names the byte of the file at the cursor."""
        return CheckpointError(fault, f"{detail} (At byte {self.byte} of the file.)", pointer)

    def _decoded(self, piece: str) -> Any:
        """Read the value at the cursor if it ends within this piece of the text."""
        try:
            value, length = _decode(piece)
        except _NotJson as error:
            raise self._non_standard(str(error)) from None
        self.position += length
        return value

    def _malformed(self, error: json.JSONDecodeError) -> CheckpointError:
        """Build the error for a malformed value, at the position where the decoder failed."""
        is_cut = self.position + LONG_CHARACTERS < len(self.text)
        start, self.position = self.position, self.position + error.pos
        # The decoder reports a string without an end, or an escape that the window cuts, where it begins.
        unclosed = self.text[self.position : self.position + 1] == '"' and not _closed_string(
            self.text, self.position, start + LONG_CHARACTERS
        )
        if is_cut and (unclosed or error.pos > LONG_CHARACTERS - 8):
            return self.error(
                "value-too-long",
                f"A value has more than {LONG_CHARACTERS} characters; no checkpoint needs as many.",
            )
        if unclosed or self.position >= len(self.text):
            return self._ends_early()
        if loose := _non_standard_token(self.text, self.position):
            return self._non_standard(loose[0])
        return self.error("not-json", f"Not valid JSON: unexpected {quoted(self.text[self.position])}.")

    def _ends_early(self) -> CheckpointError:
        return self.error("truncated-json", "The JSON ends in the middle of a value.")
