"""Waiting for the API to be ready, and saying what keeps it from that."""

from __future__ import annotations

import http.client
import time
from typing import TYPE_CHECKING

from pydantic import ValidationError

from schemas.problem import Problem
from service.child import say

if TYPE_CHECKING:
    from service.address import Address

PATH = "/readyz"
PATIENCE_S = 10.0


class Readiness:
    """Asks whether all is ready; says what is missing after some patience, and then ever less often."""

    def __init__(self, address: Address, *, patience_s: float = PATIENCE_S) -> None:
        self._address = address
        self._pause_s = patience_s
        self._say_at: float | None = None

    def __call__(self) -> bool:
        """Ask once."""
        answer = self._address.get(PATH)
        if answer is not None and answer[0] == http.client.OK:
            return True
        now = time.monotonic()
        if self._say_at is None:
            self._say_at = now + self._pause_s
        if now >= self._say_at:
            say(f"not ready yet: {_missing(answer[1]) if answer else 'the API does not answer'}")
            self._pause_s *= 2
            self._say_at = now + self._pause_s
        return False


def _missing(body: bytes) -> str:
    try:
        problem = Problem.model_validate_json(body)
    except ValidationError:
        return f"{PATH} answers with something else than what is missing; another program may listen there"
    parts = (f"{part.pointer.removeprefix('/')}: {part.detail}" for part in problem.errors)
    return " ".join(parts) or problem.detail
