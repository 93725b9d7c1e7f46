"""Requests, retries and digests: eckart/http.py."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from eckart.errors import TransferError
from eckart.http import Backoff, Call, Connection, repr_digest, retry_after_s, sha256_of

HELLO = hashlib.sha256(b"hello").hexdigest()
FIELD = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"


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

    with connection.stream(Call("GET", "/")):
        before = body.closed

    assert (before, body.closed) == (False, True)


def test_a_digest_is_written_as_the_rfc_does():
    assert repr_digest(HELLO) == FIELD


@pytest.mark.parametrize(
    ("field", "sha256"),
    [
        (FIELD, HELLO),
        (f"sha-512=:AAAA:, {FIELD}", HELLO),
        (f"md5=:AAAA:,{FIELD}", HELLO),
        (None, None),
        ("", None),
        ("sha-512=:AAAA:", None),
        (FIELD.replace(":", ""), None),
        (FIELD.replace("LPJ", "L!J"), None),
        (FIELD.replace("sha-256", "x-sha-256"), None),
    ],
)
def test_a_digest_is_read_where_there_is_one(field, sha256):
    assert sha256_of(field) == sha256


@pytest.mark.parametrize(
    ("field", "pause_s"),
    [
        ("0", 0.0),
        ("17", 17.0),
        (" 3 ", 3.0),
        (None, None),
        ("soon", None),
        ("-1", None),
        ("²", None),
        ("Mon, 02 Jan 2006 15:04:05 +0000", 0.0),
    ],
)
def test_retry_after_is_read_as_seconds(field, pause_s):
    assert retry_after_s(field) == pause_s


def test_retry_after_may_be_a_date():
    at = datetime.now(UTC) + timedelta(days=1)

    assert 86_000 < retry_after_s(format_datetime(at, usegmt=True)) <= 86_400


def test_no_time_raises_the_error_at_once():
    error = TransferError("gone")

    with pytest.raises(TransferError) as caught:
        Backoff(0).pause(error)

    assert caught.value is error


def test_a_pause_beyond_the_limit_is_not_slept_through():
    with pytest.raises(TransferError):
        Backoff(60).pause(TransferError("gone"), asked_s=3600)
