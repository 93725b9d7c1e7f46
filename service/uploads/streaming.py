"""Streaming a request's body into a sink: received on the event loop, written by one thread per request."""

import asyncio
import logging
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request

from schemas.problem import ProblemKind
from service.errors import ProblemError
from state.cache.store import DecompositionCache
from state.errors import FilesLocked, OutOfSpace, RedisUnavailable, TooLarge
from state.jobs.store import JobStore

FIRST_BLOCK_BYTES = 64 * 2**10
BLOCK_BYTES = 4 * 2**20
QUEUED_BLOCKS = 2
PAUSE_S = 0.05
RATE_AFTER_S = 60.0

log = logging.getLogger("eckart.service")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Sink(Protocol[T_co]):
    """Where a body goes. One thread makes all calls; `abort` is the last one unless `commit` succeeds."""

    def write(self, block: bytes) -> None: ...

    def commit(self) -> T_co:
        """Keep the body, which is complete."""

    def abort(self) -> None:
        """Remove all that was written."""


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The disk that uploads are written to, of which `min_free_bytes` must stay free."""

    path: Path
    min_free_bytes: int
    cache: DecompositionCache
    jobs: JobStore

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.path).free

    def require(self, nbytes: int) -> None:
        """Raise `OutOfSpace` unless `nbytes` more fit.

        If they do not, the layers of failed jobs are removed first, and cached decompositions if that helps.
        """
        if self._lacking_bytes(nbytes) > 0:
            with suppress(RedisUnavailable):
                self.jobs.upkeep.remove_failed_layers(enough=lambda: self._lacking_bytes(nbytes) <= 0)
        if self._lacking_bytes(nbytes) > 0:
            with suppress(FilesLocked):
                self.cache.free_space(self._lacking_bytes(nbytes))
        if self._lacking_bytes(nbytes) > 0:
            raise OutOfSpace(self._found(nbytes))

    def _found(self, nbytes: int) -> str:
        found = f": {nbytes} bytes are needed, and {self.free_bytes()} are free"
        if not self.min_free_bytes:
            return found
        return f"{found}, of which {self.min_free_bytes} must stay free (ECKART_MIN_FREE_BYTES)"

    def _lacking_bytes(self, nbytes: int) -> int:
        return nbytes + self.min_free_bytes - self.free_bytes()


class UploadSlots:
    """Counts the uploads under way, and refuses more than there may be at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count an upload; entered and left on the event loop alone."""
        if self._taken >= self._limit:
            raise ProblemError(ProblemKind.BUSY, f"{self._limit} uploads are under way already.")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


def check_declared_size(request: Request, *, limit_bytes: int) -> int | None:
    """Check the headers that describe the body; return its size, or None where Content-Length is absent."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        raise ProblemError(ProblemKind.ENCODED_BODY)
    if request.headers.get("transfer-encoding", "chunked").strip().lower() != "chunked":
        raise ProblemError(ProblemKind.ENCODED_BODY)
    if "content-range" in request.headers:
        raise ProblemError(ProblemKind.PARTIAL_BODY)
    length = request.headers.get("content-length")
    nbytes = None if length is None else int(length)
    if nbytes is not None and nbytes > limit_bytes:
        raise TooLarge(limit_bytes)
    return nbytes


class BodyStream:
    """The body of one request as it arrives: counted, limited, and dropped if the client stops sending.

    `space` is the disk that it will be written to, if any.
    """

    def __init__(
        self,
        request: Request,
        *,
        limit_bytes: int,
        idle_timeout_s: float,
        least_bytes_per_s: int,
        space: DiskSpace | None,
        rate_after_s: float = RATE_AFTER_S,
    ) -> None:
        self._receive = request.receive
        self._client = request.client
        self._path = request.url.path
        self._limit_bytes = limit_bytes
        self._idle_timeout_s = idle_timeout_s
        self._least_bytes_per_s = least_bytes_per_s
        self._rate_after_s = rate_after_s
        self._space = space
        self._seen_bytes = 0
        self._waited_s = 0.0
        self._more = True
        # Whether the client had sent nothing more when the last block was complete.
        self.paused = False

    async def blocks(self) -> AsyncIterator[list[bytes]]:
        """Yield blocks of 64 KiB, growing to 4 MiB.

        A block is smaller where the client pauses, so that a malformed header is refused at once.
        """
        gathered: list[bytes] = []
        gathered_bytes, block_bytes = 0, FIRST_BLOCK_BYTES
        while self._more:
            self.paused = False
            try:
                gathered.append(await self._chunk(PAUSE_S if gathered_bytes else self._idle_timeout_s))
                gathered_bytes += len(gathered[-1])
            except TimeoutError:
                self.paused = True
                if not gathered_bytes:
                    raise self._timed_out() from None
            if gathered_bytes >= block_bytes or self.paused or not self._more:
                yield gathered
                gathered, gathered_bytes = [], 0
                block_bytes = min(2 * block_bytes, BLOCK_BYTES)

    def check_space(self) -> None:
        """Check that the disk has enough free space left; called before each block is written."""
        if self._space is not None:
            # Not for the block's own bytes: the space for them may be reserved already.
            self._space.require(0)

    async def whole(self) -> bytes:
        return b"".join([b"".join(block) async for block in self.blocks()])

    async def _chunk(self, timeout_s: float) -> bytes:
        begun_s = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._receive()
        finally:
            self._waited_s += time.monotonic() - begun_s
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._more = message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        self._seen_bytes += len(chunk)
        if self._seen_bytes > self._limit_bytes:
            raise TooLarge(self._limit_bytes)
        if self._more:
            self._check_rate()
        return chunk

    def log_interruption(self) -> None:
        """Log an upload that the client broke off; the access log has no line for it."""
        client = f"{self._client.host}:{self._client.port}" if self._client else "a client"
        log.info("%s broke off its upload to %s after %d bytes", client, quote(self._path), self._seen_bytes)

    def _timed_out(self) -> ProblemError:
        return ProblemError(ProblemKind.REQUEST_TIMEOUT, f"No data arrived for {self._idle_timeout_s:g} s")

    def _check_rate(self) -> None:
        """Drop a client that has had a minute and sends too little; time spent here does not count."""
        if (
            self._waited_s > self._rate_after_s
            and self._seen_bytes < self._least_bytes_per_s * self._waited_s
        ):
            reason = f"Less than {self._least_bytes_per_s} bytes a second arrived"
            raise ProblemError(ProblemKind.REQUEST_TIMEOUT, reason)


class Writer(Generic[T]):
    """One thread that makes all calls to a sink, behind a queue short enough to slow the sender down."""

    def __init__(self, begin: Callable[[], Sink[T]], *, before_write: Callable[[], None]) -> None:
        self._before_write = before_write
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._queued: deque[Future[None]] = deque()
        self._sink = self._thread.submit(begin)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            # Shielded: a second cancellation, as at the end of a shutdown, must not cancel the abort.
            await asyncio.shield(asyncio.wrap_future(self._thread.submit(self._abort)))
        self._thread.shutdown(wait=False)

    async def put(self, block: list[bytes], *, wait: bool) -> None:
        """Queue a block; waits while the queue is full, and raises what writing an earlier block raised.

        With `wait` it waits until this block is written too.
        """
        self._queued.append(self._thread.submit(self._write, block))
        while wait or len(self._queued) > QUEUED_BLOCKS or self._queued[0].done():
            await asyncio.wrap_future(self._queued.popleft())
            if not self._queued:
                return

    async def commit(self) -> T:
        """Write the queued blocks and commit the sink."""
        while self._queued:
            await asyncio.wrap_future(self._queued.popleft())
        return await asyncio.wrap_future(self._thread.submit(self._commit))

    def _write(self, block: list[bytes]) -> None:
        self._before_write()
        # Joined in this thread, not on the event loop: large joins release the interpreter lock.
        self._sink.result().write(b"".join(block))

    def _commit(self) -> T:
        return self._sink.result().commit()

    def _abort(self) -> None:
        if self._sink.exception() is None:
            self._sink.result().abort()


async def receive_body(
    body: BodyStream, begin: Callable[[], Sink[T]], *, count: Callable[[int], object]
) -> T:
    """Stream a body into a sink; on any error, also when the client disconnects, the sink is aborted."""
    async with Writer(begin, before_write=body.check_space) as writer:
        try:
            async for block in body.blocks():
                count(sum(map(len, block)))
                # A client that pauses may be waiting for the answer to what it has sent.
                await writer.put(block, wait=body.paused)
        except ClientDisconnect:
            body.log_interruption()
            raise
        return await writer.commit()
