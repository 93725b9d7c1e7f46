"""Request bodies on their way to disk: gathered on the event loop, written by one thread for each request."""

import asyncio
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

from starlette.requests import Request

from service import errors

FIRST_BLOCK_BYTES = 64 * 2**10
BLOCK_BYTES = 4 * 2**20
QUEUED_BLOCKS = 2

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

    def free_bytes(self) -> int:
        """Bytes that this process may still write."""
        return shutil.disk_usage(self.path).free

    def require(self, nbytes: int) -> None:
        """Refuse where that many more would leave too little."""
        if self.free_bytes() - nbytes < self.min_free_bytes:
            raise errors.OutOfSpace


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


async def body_chunks(request: Request, *, limit_bytes: int, idle_timeout_s: float) -> AsyncIterator[bytes]:
    """Yield the body as it arrives, counted; a client that falls silent is dropped."""
    stream, seen_bytes = request.stream(), 0
    while True:
        try:
            async with asyncio.timeout(idle_timeout_s):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise errors.RequestTimeout(
                f"Nothing arrived for {idle_timeout_s:g} s, so what had come was dropped; send it again."
            ) from None
        seen_bytes += len(chunk)
        if seen_bytes > limit_bytes:
            raise over_limit(limit_bytes)
        yield chunk


async def body_blocks(
    request: Request, *, limit_bytes: int, idle_timeout_s: float
) -> AsyncIterator[list[bytes]]:
    """Yield the body in blocks that grow from 64 KiB to 4 MiB, so that a bad header is seen early."""
    gathered: list[bytes] = []
    gathered_bytes, block_bytes = 0, FIRST_BLOCK_BYTES
    async for chunk in body_chunks(request, limit_bytes=limit_bytes, idle_timeout_s=idle_timeout_s):
        gathered.append(chunk)
        gathered_bytes += len(chunk)
        if gathered_bytes >= block_bytes:
            yield gathered
            gathered, gathered_bytes = [], 0
            block_bytes = min(2 * block_bytes, BLOCK_BYTES)
    if gathered_bytes:
        yield gathered


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
            await asyncio.wrap_future(self._thread.submit(self._abort))
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


async def receive_body(
    request: Request,
    begin: Callable[[], Sink[T]],
    *,
    limit_bytes: int,
    idle_timeout_s: float,
    count: Callable[[int], object],
) -> T:
    """Stream the body into a sink; whatever goes wrong, the client's leaving included, leaves nothing."""
    async with Writer(begin) as writer:
        async for block in body_blocks(request, limit_bytes=limit_bytes, idle_timeout_s=idle_timeout_s):
            count(sum(map(len, block)))
            await writer.put(block)
        return await writer.commit()
