"""The threads that plan: few, with a short queue, apart from those of other requests and of the reaper.

Planning holds the interpreter's lock for as long as it takes, so many plans at once would make every other
request wait.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from schemas.problem import ProblemKind
from service.errors import ProblemError

PLANS_AT_ONCE = 2
PLANS_WAITING = 16

P = ParamSpec("P")
T = TypeVar("T")


class PlanningPool:
    """Runs what goes through all tensors of a checkpoint: plans, and documents of checkpoints."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(PLANS_AT_ONCE, thread_name_prefix="planning")
        self._lock = threading.Lock()
        self._under_way = 0

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run it in its turn, or refuse it while too many wait."""
        if self._under_way >= PLANS_AT_ONCE + PLANS_WAITING:
            waiting = (
                f"{PLANS_AT_ONCE} plans are being made, and {PLANS_WAITING} more requests wait for theirs."
            )
            raise ProblemError(ProblemKind.BUSY, waiting)
        return await self.run_in_any_case(work, *args, **kwargs)

    async def run_in_any_case(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run it in its turn, however many wait: for a request whose files have arrived already."""
        with self._lock:
            self._under_way += 1
        future = self._threads.submit(partial(work, *args, **kwargs))
        # Called too if the client goes away before its turn.
        future.add_done_callback(self._end)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _end(self, _future: Future[T]) -> None:
        with self._lock:
            self._under_way -= 1
