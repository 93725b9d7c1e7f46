"""Requests to a service that may be down for a while."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx

from tools.chaos.ledger import BAD_ANSWER

if TYPE_CHECKING:
    from tools.chaos.ledger import Ledger

TIMEOUT_S = 10.0
PAUSE_S = 0.05
# What a client is told to repeat while something is down, locked, full or busy.
FOR_A_WHILE = frozenset({408, 423, 429, 503, 507})


class UnsettledError(Exception):
    """The program ends before a request was answered."""


class Connection:
    """Sends a request until it is answered, as a client that does not give up."""

    def __init__(self, url: str, ledger: Ledger) -> None:
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S)
        self._ledger = ledger
        self.give_up_at: float | None = None

    def once(self, method: str, path: str, **parts: Any) -> httpx.Response | None:
        """Send it once; None: no answer, or one that says to come again."""
        try:
            answer = self._http.request(method, path, **parts)
        except httpx.HTTPError:
            return None
        if answer.status_code in FOR_A_WHILE:
            return None
        if answer.status_code >= 500:
            self._ledger.fault(BAD_ANSWER, f"{method} {path}: {answer.status_code} {answer.text[:300]}")
            return None
        return answer

    def until_answered(self, method: str, path: str, **parts: Any) -> httpx.Response:
        while True:
            # The parts may hold an iterator, which is made anew.
            made = {name: part() if callable(part) else part for name, part in parts.items()}
            if (answer := self.once(method, path, **made)) is not None:
                return answer
            self.check_time()
            time.sleep(PAUSE_S)

    def check_time(self) -> None:
        if self.give_up_at is not None and time.monotonic() > self.give_up_at:
            raise UnsettledError
