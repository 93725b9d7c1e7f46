"""Request bodies on their way to disk: gathered on the event loop, written by one thread for each request."""

import asyncio
import logging
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request

from service import errors
from state.cache import DecompositionCache

FIRST_BLOCK_BYTES = 64 * 2**10
BLOCK_BYTES = 4 * 2**20
QUEUED_BLOCKS = 2
PAUSE_S = 0.05

log = logging.getLogger("eckart.service")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Sink(Protocol[T_co]):
    """Where a body goes; every call comes from one thread, and abort comes last unless commit succeeds."""

    def write(self, block: bytes) -> None:
        """Take the next bytes."""

    def commit(self) -> T_co:
        """Keep what came, which was all."""

    def abort(self) -> None:
        """Leave nothing of what came."""


@dataclass(frozen=True, slots=True)
class Space:
    """The disk that uploads go to, and what must stay free on it."""

    path: Path
    min_free_bytes: int
    cache: DecompositionCache

    def free_bytes(self) -> int:
        """Bytes that this process may still write."""
        return shutil.disk_usage(self.path).free

    def require(self, nbytes: int) -> None:
        """Refuse where that many more would leave too little, even with what the cache can give back."""
        if self._lacking_bytes(nbytes) > 0:
            self.cache.free_space(self._lacking_bytes(nbytes))
        if self._lacking_bytes(nbytes) > 0:
            raise errors.OutOfSpace

    def _lacking_bytes(self, nbytes: int) -> int:
        return nbytes + self.min_free_bytes - self.free_bytes()


def declared_bytes(request: Request, *, limit_bytes: int) -> int | None:
    """Check what the head says about the body before any of it is read; None: the length is not said."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        raise errors.EncodedBody
    if request.headers.get("transfer-encoding", "chunked").strip().lower() != "chunked":
        raise errors.EncodedBody("Send the bytes as they are, without Transfer-Encoding other than chunked.")
    if "content-range" in request.headers:
        raise errors.PartialBody
    length = request.headers.get("content-length")
    nbytes = None if length is None else int(length)
    if nbytes is not None and nbytes > limit_bytes:
        raise over_limit(limit_bytes)
    return nbytes


def over_limit(limit_bytes: int) -> errors.Refusal:
    """Name the limit that was passed."""
    return errors.TooLarge(f"The body may hold at most {limit_bytes} bytes.")


class Body:
    """The body of one request as it arrives, counted; a client that falls silent is dropped."""

    def __init__(self, request: Request, *, limit_bytes: int, idle_timeout_s: float) -> None:
        self._receive = request.receive
        self._client = request.client
        self._path = request.url.path
        self._limit_bytes = limit_bytes
        self._idle_timeout_s = idle_timeout_s
        self._seen_bytes = 0
        self._more = True

    async def blocks(self) -> AsyncIterator[list[bytes]]:
        """Yield blocks of 64 KiB, growing to 4 MiB, or what has come at a pause: bad headers show early."""
        gathered: list[bytes] = []
        gathered_bytes, block_bytes = 0, FIRST_BLOCK_BYTES
        while self._more:
            paused = False
            try:
                gathered.append(await self._chunk(PAUSE_S if gathered_bytes else self._idle_timeout_s))
                gathered_bytes += len(gathered[-1])
            except TimeoutError:
                paused = True
                if not gathered_bytes:
                    raise self._silent() from None
            if gathered_bytes >= block_bytes or paused or not self._more:
                yield gathered
                gathered, gathered_bytes = [], 0
                block_bytes = min(2 * block_bytes, BLOCK_BYTES)

    async def whole(self) -> bytes:
        """Return all of a small one."""
        return b"".join([b"".join(block) async for block in self.blocks()])

    async def _chunk(self, timeout_s: float) -> bytes:
        async with asyncio.timeout(timeout_s):
            message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._more = message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        self._seen_bytes += len(chunk)
        if self._seen_bytes > self._limit_bytes:
            raise over_limit(self._limit_bytes)
        return chunk

    def log_interruption(self) -> None:
        """Say whose upload of what ended before its end; its request leaves no other line."""
        client = f"{self._client.host}:{self._client.port}" if self._client else "a client"
        log.info("%s left its upload to %s after %d bytes", client, quote(self._path), self._seen_bytes)

    def _silent(self) -> errors.Refusal:
        return errors.RequestTimeout(
            f"Nothing arrived for {self._idle_timeout_s:g} s, so what had come was dropped; send it again."
        )


class Writer(Generic[T]):
    """One thread that a sink lives in, behind a queue short enough to hold the sender back."""

    def __init__(self, begin: Callable[[], Sink[T]]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._queued: deque[Future[None]] = deque()
        self._sink = self._thread.submit(begin)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            # Shielded: a second cancellation, as at the end of a shutdown, must not take it back.
            await asyncio.shield(asyncio.wrap_future(self._thread.submit(self._abort)))
        self._thread.shutdown(wait=False)

    async def put(self, block: list[bytes]) -> None:
        """Queue a block, waiting while the queue is full; an earlier block's fault is raised here."""
        self._queued.append(self._thread.submit(self._write, block))
        while len(self._queued) > QUEUED_BLOCKS or self._queued[0].done():
            await asyncio.wrap_future(self._queued.popleft())
            if not self._queued:
                return

    async def commit(self) -> T:
        """Write what is queued and keep it all."""
        while self._queued:
            await asyncio.wrap_future(self._queued.popleft())
        return await asyncio.wrap_future(self._thread.submit(self._commit))

    def _write(self, block: list[bytes]) -> None:
        # Joined here and not on the event loop: large joins let go of the interpreter lock.
        self._sink.result().write(b"".join(block))

    def _commit(self) -> T:
        return self._sink.result().commit()

    def _abort(self) -> None:
        if self._sink.exception() is None:
            self._sink.result().abort()


async def receive_body(body: Body, begin: Callable[[], Sink[T]], *, count: Callable[[int], object]) -> T:
    """Stream a body into a sink; whatever goes wrong, the client's leaving included, leaves nothing."""
    async with Writer(begin) as writer:
        try:
            async for block in body.blocks():
                count(sum(map(len, block)))
                await writer.put(block)
        except ClientDisconnect:
            body.log_interruption()
            raise
        return await writer.commit()
