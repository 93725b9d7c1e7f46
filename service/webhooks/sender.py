"""Sending one message: signed as Standard Webhooks say, to an address that was checked, without redirects."""

import asyncio
import base64
import hashlib
import hmac
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import httpcore
import httpx

from service.webhooks.hosts import Target, WebhookHosts, WebhookRefused
from service.webhooks.secrets import WebhookSecrets

TIMEOUT_S = 20.0
# Standard Webhooks ask receivers to accept so much.
MOST_BODY_BYTES = 20_000
GONE = 410
UNSIGNED = "There is no secret to sign webhooks of this key with. Have the operator add one."


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt; `error` is None if the message was taken."""

    status: int | None
    error: str | None

    @property
    def final(self) -> bool:
        """Whether no further attempt makes sense: it was taken, or the receiver wants no more."""
        return self.error is None or self.status == GONE


class WebhookSender:
    """Sends messages to allowed hosts."""

    def __init__(
        self,
        hosts: WebhookHosts,
        secrets: WebhookSecrets,
        *,
        timeout_s: float = TIMEOUT_S,
        certificates: ssl.SSLContext | None = None,
    ) -> None:
        """Sign with every secret of an owner; `certificates` are the usual ones unless given."""
        self._hosts = hosts
        self._secrets = secrets
        self._timeout_s = timeout_s
        self._certificates = certificates

    async def send(self, url: str, message_id: str, body: bytes, *, owner: str) -> Outcome:
        """POST a message once; whatever goes wrong is the outcome."""
        assert len(body) < MOST_BODY_BYTES
        secrets = self._secrets.of(owner)
        if not secrets:
            return Outcome(None, UNSIGNED)
        try:
            async with asyncio.timeout(self._timeout_s):
                target = self._hosts.target(url)
                addresses = await asyncio.to_thread(self._hosts.addresses, target)
                status = await self._post(target, addresses, _headers(secrets, message_id, body), body)
        except WebhookRefused as error:
            why = str(error)
        except TimeoutError:
            why = f"No answer within {self._timeout_s:g} s."
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            why = f"The connection failed: {str(error)[:200] or type(error).__name__}"
        else:
            return _outcome(status)
        return Outcome(None, why)

    async def _post(
        self, target: Target, addresses: Sequence[str], headers: Iterable[tuple[str, str]], body: bytes
    ) -> int:
        if self._certificates is None and target.scheme == "https":
            self._certificates = await asyncio.to_thread(httpx.create_ssl_context)
        url = httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path
        )
        network = _CheckedAddresses(addresses)
        async with (
            httpcore.AsyncConnectionPool(ssl_context=self._certificates, network_backend=network) as pool,
            pool.stream("POST", url, headers=list(headers), content=body) as response,
        ):
            # What the body says does not matter, so it is not read.
            return response.status


def _headers(secrets: Sequence[bytes], message_id: str, body: bytes) -> list[tuple[str, str]]:
    timestamp = str(int(time.time()))
    signatures = (sign(secret, message_id, timestamp, body) for secret in secrets)
    return [
        ("Content-Type", "application/json"),
        ("User-Agent", f"eckart/{version('eckart')}"),
        ("webhook-id", message_id),
        ("webhook-timestamp", timestamp),
        ("webhook-signature", " ".join(signatures)),
    ]


def _outcome(status: int) -> Outcome:
    if status in range(200, 300):
        return Outcome(status, None)
    if status in range(300, 400):
        return Outcome(status, "Redirects are not followed; change the URL.")
    return Outcome(status, f"The receiver answered with {status}.")


def sign(secret: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """Return one signature of a message."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


class _CheckedAddresses(httpcore.AsyncNetworkBackend):
    """Connects to given addresses only: a name could have others by now, if it were looked up again."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - TLS checks the certificate against it
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: httpcore.NetworkError | None = None
        for address in self._addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError as error:
                failure = error
        assert failure is not None  # there is at least one address
        raise failure
