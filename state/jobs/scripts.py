"""The transitions of `jobs/lua`, each one atomic in Redis, and their repetition when Redis lost its data."""

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar

import redis
from redis.exceptions import NoPermissionError, NoScriptError

from schemas.spec import REFERENCES
from state.errors import RedisUnavailable
from state.redis import KEY_PREFIX, translated

T = TypeVar("T")

log = logging.getLogger("eckart.state")

READY = KEY_PREFIX + "ready"
CREATED = KEY_PREFIX + "created"
RESTORING = KEY_PREFIX + "restoring"
# A server that loses its keys again and again counts as unavailable.
MAX_RESTORES = 10
# One process restores at a time. It renews its turn with every batch; another takes over if it stops.
TURN_S = 30
WAIT_S = 5.0
PAUSE_S = 0.05

REQUIRE_READY = (
    "cancel",
    "claim",
    "counts",
    "create",
    "expire",
    "expired",
    "fail",
    "finish",
    "lock_checkpoint",
    "page",
    "read",
    "release",
    "renew_lease",
    "resume",
    "retry",
    "sweep",
)
UNCONDITIONAL = ("delete", "make_ready", "restore", "restored", "written")


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job as its job.json has it: the fingerprint of its idempotency key or '', and its fields as JSON."""

    id: str
    fingerprint: str
    fields: str


class StateLost(Exception):  # noqa: N818 - it says what happened, and never leaves this package
    """Redis lost its keys, or was restarted and may have lost the last of them: restore, then repeat."""


class Scripts:
    """Runs the Lua scripts. Most refuse to run on a server that may have lost data, until `restore`."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._restoring = threading.Lock()
        folder = files("state.jobs") / "lua"
        common = (folder / "common.lua").read_text()
        self._texts = {
            name: common + (folder / f"{name}.lua").read_text() for name in REQUIRE_READY + UNCONDITIONAL
        }
        self._digests = {
            name: hashlib.sha1(self._texts[name].encode(), usedforsecurity=False).hexdigest()
            for name in self._texts
        }

    def run(self, name: str, *args: str | float) -> Any:
        """Run a script that requires a ready server, or raise `StateLost` with nothing done.

        An empty server lacks the marker, and a restarted one has no scripts, since they are never saved.
        """
        with translated():
            try:
                answer = self._client.evalsha(self._digests[name], 0, *args)
            except NoScriptError as error:
                raise StateLost from error
        if answer == "state_lost":
            raise StateLost
        return answer

    def run_always(self, name: str, *args: str | float) -> Any:
        """Run a script that is right in every condition of the server."""
        with translated():
            return self._client.eval(self._texts[name], 0, *args)

    def with_restore(self, action: Callable[[], T], restore_all: Callable[[str], None]) -> T:
        """Return the action's result; on `StateLost`, restore all records and repeat the whole action."""
        for _ in range(MAX_RESTORES):
            try:
                return action()
            except StateLost:
                self.restore(restore_all)
        raise RedisUnavailable

    def restore(self, restore_all: Callable[[str], None]) -> None:
        """Restore what Redis lost, if it lost anything, and let all scripts run again.

        One process does it, and the others wait for some seconds and then raise `RedisUnavailable`. If Redis
        loses its data during that, it does not become ready, and the next call restores again. `restore_all`
        gets the token of this turn, for `restore_records`.
        """
        if not self._restoring.acquire(timeout=WAIT_S):
            raise RedisUnavailable
        try:
            until_s, token = time.monotonic() + WAIT_S, secrets.token_hex(8)
            while not self.ready():
                with translated():
                    mine = self._client.set(RESTORING, token, nx=True, ex=TURN_S)
                if mine:
                    self._restore_in_turn(restore_all, token)
                    return
                if time.monotonic() >= until_s:
                    raise RedisUnavailable
                time.sleep(PAUSE_S)
        finally:
            self._restoring.release()

    def _restore_in_turn(self, restore_all: Callable[[str], None], token: str) -> None:
        """Restore, unless another process has done it before this one got its turn."""
        if self.ready():
            with translated():
                self._client.delete(RESTORING)
            return
        with translated():
            # From here on nothing but the end of this turn makes the server ready: loaded scripts do not.
            self._client.delete(READY)
        with suppress(StateLost):
            restore_all(token)
            self.load()
            self.run_always("make_ready", token, self._run_id())

    def restoring(self) -> int | None:
        """Return how many jobs the restore that runs now has put back so far; None where none runs."""
        with translated(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.exists(RESTORING)
            pipeline.zcard(f"{KEY_PREFIX}jobs:all")
            running, count = pipeline.execute()
            return int(count) if running else None

    def restore_records(self, jobs: Iterable[StoredJob], *, token: str = "") -> None:
        """Run the script `restore` on these jobs, in one go.

        With the token of a turn to restore all, the turn is kept; `StateLost` where it has passed to another
        process, since these records may be older than what has happened since.
        """
        arguments = [word for job in jobs for word in (job.id, job.fingerprint, job.fields)]
        if self.run_always("restore", token, TURN_S, *arguments) == "lost":
            raise StateLost

    def ready(self) -> bool:
        """Whether the scripts that require a ready server can run."""
        with translated():
            known: Any = self._client.script_exists(*(self._digests[name] for name in REQUIRE_READY))
            return all(known) and bool(self._client.exists(READY))

    def forget_if_set_back(self, created: int) -> None:
        """Make the server not ready if it lacks a job of so many that were created, or is another server.

        A replica that takes over, or a former master that is master again, may have scripts and marker, and
        lack the last records.
        """
        with translated():
            marker, known = self._client.mget(READY, CREATED)
            if marker is not None and (marker != self._run_id() or int(known or 0) < created):
                log.warning("Redis was set back, or replaced by another server; the records are restored")
                self._client.delete(READY)

    def load(self) -> None:
        """Load the scripts that require a ready server."""
        with translated():
            for name in REQUIRE_READY:
                self._client.script_load(self._texts[name])

    def _run_id(self) -> str:
        """Return the id that a server has until it is restarted, or '' where it is not to be known."""
        try:
            return str(self._client.info("server").get("run_id", ""))
        except NoPermissionError:
            return ""

    def fields(self, job_id: str) -> dict[str, str]:
        """Return the fields of a job's hash; none where there is no such job."""
        with translated():
            fields: Any = self._client.hgetall(f"{KEY_PREFIX}job:{job_id}")
            return dict(fields)

    def job_ids(self) -> list[str]:
        """Return the ids of all jobs that the server knows."""
        with translated():
            members: Any = self._client.zrange(f"{KEY_PREFIX}jobs:all", 0, -1)
            return list(members)

    def unknown(self, job_ids: Sequence[str]) -> list[str]:
        """Return those of the ids that the server does not know."""
        with translated(), self._client.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.exists(f"{KEY_PREFIX}job:{job_id}")
            return [job_id for job_id, known in zip(job_ids, pipeline.execute(), strict=True) if not known]

    def checkpoints_of(self, job_ids: Sequence[str]) -> list[tuple[str, list[str]]]:
        """Return the owner of each job, and the checkpoints that it names; none where they are not known."""
        names = ("owner", "checkpoint", *REFERENCES)
        with translated(), self._client.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hmget(f"{KEY_PREFIX}job:{job_id}", names)
            return [(owner or "", [each for each in named if each]) for owner, *named in pipeline.execute()]

    def dirty(self) -> list[str]:
        """Return the ids of the jobs whose files on disk are not up to date."""
        with translated():
            members: Any = self._client.smembers(f"{KEY_PREFIX}dirty")
            return sorted(members)

    def is_leased(self, job_id: str) -> bool:
        """Whether an attempt may be working on the job, even one that has been canceled."""
        with translated():
            return self._client.zscore(f"{KEY_PREFIX}leases", job_id) is not None
