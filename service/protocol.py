"""uvicorn's HTTP parser with our manners: problems for what is no HTTP, and an end to endless heads."""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service import errors

MAX_HEAD_BYTES = 512 * 2**10
HEAD_TIMEOUT_S = 30.0


class EckartProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; a head that does not fit is refused, for the parser would keep all of it in memory."""
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(errors.HeadersTooLarge())

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        self._end_head()
        self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that the head is whole."""
        self._end_head()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body; added to empty bytes it is not copied, as it would be in a bytearray."""
        if not self.cycle.body:
            self.cycle.body = b""  # type: ignore[assignment]  # uvicorn only ever adds to it and reads it
        super().on_body(body)

    def send_400_response(self, _msg: str) -> None:
        """Refuse what the parser could not make sense of."""
        self._refuse(errors.InvalidHttp())

    def _await_head(self) -> None:
        self._in_head = True
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()

    def _refuse(self, refusal: errors.Refusal) -> None:
        body = json.dumps(refusal.problem().model_dump(mode="json")).encode()
        head = (
            b"content-type: application/problem+json\r\n"
            b"content-length: %d\r\n"
            b"connection: close\r\n\r\n" % len(body)
        )
        self.transport.write(STATUS_LINE[refusal.status] + head + body)
        self.transport.close()
