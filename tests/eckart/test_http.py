"""Requests, retries and digests: eckart/http.py."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from eckart import AnswerError, Client, InputError, UnreachableError
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
        Backoff(0).next_s(error)

    assert caught.value is error


def test_a_pause_beyond_the_limit_raises_the_error_at_once():
    with pytest.raises(TransferError):
        Backoff(60).next_s(TransferError("gone"), asked_s=3600)


SECRET = "sekret-0f9e"


def test_the_key_is_sent_from_the_argument_or_the_environment(monkeypatch):
    sent = []

    def answer(request):
        sent.append(request.headers.get("Authorization"))
        return httpx.Response(200, json={"jobs": [], "next_cursor": None})

    def ask(**options):
        with Client("http://here", transport=httpx.MockTransport(answer), **options) as client:
            assert list(client.jobs()) == []

    monkeypatch.delenv("ECKART_API_KEY", raising=False)
    ask()
    ask(api_key=f"{SECRET}\n")
    monkeypatch.setenv("ECKART_API_KEY", "of-environment")
    ask()
    ask(api_key=SECRET)
    ask(api_key="")
    assert sent == [None, f"Bearer {SECRET}", "Bearer of-environment", f"Bearer {SECRET}", None]


def test_the_address_comes_from_the_environment_if_none_is_given(monkeypatch):
    monkeypatch.setenv("ECKART_URL", "http://127.0.0.1:9")
    with Client() as client, pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"):
        client.job("J1")


@pytest.mark.parametrize("key", ["sek ret", "sekret\nX: y", "sekrét"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key):
    with pytest.raises(InputError, match="printable ASCII") as refusal:
        Client("http://here", api_key=key)
    assert "sek" not in str(refusal.value)


def test_errors_and_reprs_do_not_show_the_key():
    def echo(request):
        return httpx.Response(502, text=f"You sent {request.headers['Authorization']}")

    client = Client("http://here", api_key=SECRET, transport=httpx.MockTransport(echo), patience_s=0)
    with pytest.raises(AnswerError) as refusal:
        client.job("J1")
    assert "You sent Bearer" in str(refusal.value)
    shown = [
        str(refusal.value),
        repr(refusal.value),
        repr(client),
        repr(vars(client)),
        repr(vars(client._connection)),
    ]
    assert not any(SECRET in text for text in shown)
    client.close()


def test_the_key_is_not_sent_to_where_an_answer_leads(serve):
    seen = []

    def other(exchange):
        seen.append(exchange.headers)
        exchange.answer(200, b"{}")

    elsewhere = serve(other)
    leading = serve(lambda exchange: exchange.answer(307, headers={"Location": f"{elsewhere}/v1/jobs/J1"}))
    with Client(leading, api_key=SECRET) as client, pytest.raises(AnswerError, match="307"):
        client.job("J1")
    assert seen == []
