"""What a connection does with an answer."""

from __future__ import annotations

import httpx

from eckart.connection import Call, Connection


class Body(httpx.SyncByteStream):
    """A body that knows whether it was closed."""

    def __init__(self):
        self.closed = False

    def __iter__(self):
        yield b"much"

    def close(self):
        self.closed = True


def test_an_answer_that_is_left_unread_is_closed():
    body = Body()
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=body))
    connection = Connection("http://here", timeout_s=1, patience_s=0, transport=transport)

    with connection.open(Call("GET", "/")):
        before = body.closed

    assert (before, body.closed) == (False, True)
