"""The transitions of `state/lua`, each one atomic in Redis."""

import hashlib
from importlib.resources import files
from typing import Any

import redis
from redis.exceptions import NoScriptError

from state.redis import translated

PREFIX = "eckart:"
READY = PREFIX + "ready"

NEEDS_RECORDS = (
    "cancel",
    "claim",
    "counts",
    "create",
    "fail",
    "finish",
    "lock_checkpoint",
    "heartbeat",
    "page",
    "read",
    "release",
    "retry",
    "sweep",
)
ALWAYS_ALLOWED = ("delete", "restore", "written")


class StateLost(Exception):  # noqa: N818 - it says what happened, and never leaves this package
    """Redis has lost its keys, or was restarted and may have lost the last of them: rebuild, then go on."""


class Scripts:
    """Guarded scripts refuse to run on a server that is new; the others are what makes it old."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        folder = files("state") / "lua"
        common = (folder / "common.lua").read_text()
        self._texts = {
            name: common + (folder / f"{name}.lua").read_text() for name in NEEDS_RECORDS + ALWAYS_ALLOWED
        }
        self._digests = {
            name: hashlib.sha1(self._texts[name].encode(), usedforsecurity=False).hexdigest()
            for name in NEEDS_RECORDS
        }

    def run(self, name: str, *args: str | float) -> Any:
        """Run a guarded script, or raise `Wiped` with nothing done.

        A wiped server lacks the marker, and a restarted one has no scripts: the cache is never on disk.
        """
        with translated():
            try:
                answer = self.client.evalsha(self._digests[name], 0, *args)
            except NoScriptError as error:
                raise StateLost from error
        if answer == "state_lost":
            raise StateLost
        return answer

    def run_always(self, name: str, *args: str | float) -> Any:
        """Run a script that is right in every condition of the server."""
        with translated():
            return self.client.eval(self._texts[name], 0, *args)

    def fields(self, job_id: str) -> dict[str, str]:
        """Return the fields of a job's hash; none where there is no such job."""
        with translated():
            fields: Any = self.client.hgetall(f"{PREFIX}job:{job_id}")
            return dict(fields)

    def members(self, name: str) -> set[str]:
        """Return the members of one of the sets that the scripts keep."""
        with translated():
            members: Any = self.client.smembers(PREFIX + name)
            return set(members)

    def leased(self, job_id: str) -> bool:
        """Say whether an attempt may be at work on the job, or at work still though it has been canceled."""
        with translated():
            return self.client.zscore(f"{PREFIX}leases", job_id) is not None

    def ready(self) -> bool:
        """Say whether guarded scripts can run."""
        with translated():
            known: Any = self.client.script_exists(*self._digests.values())
            return all(known) and bool(self.client.exists(READY))

    def open(self) -> None:
        """Let guarded scripts run from now on."""
        with translated():
            self.client.set(READY, 1)
            for name in NEEDS_RECORDS:
                self.client.script_load(self._texts[name])


WORKERS = PREFIX + "workers"


class WorkerRegistry:
    """Names of workers and when they count as dead, by the clock of Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def beat(self, name: str, ttl_s: float) -> None:
        """Say that a worker lives, and will say so again within that time."""
        with translated():
            now = self._now()
            self._client.zadd(WORKERS, {name: now + ttl_s})
            self._client.zremrangebyscore(WORKERS, "-inf", now)

    def leave(self, name: str) -> None:
        """Say that a worker stops."""
        with translated():
            self._client.zrem(WORKERS, name)

    def alive(self) -> list[str]:
        """Return the names of the workers that live."""
        with translated():
            names: Any = self._client.zrangebyscore(WORKERS, self._now(), "+inf")
            return sorted(names)

    def _now(self) -> float:
        time: Any = self._client.time()
        seconds, microseconds = time
        return float(seconds) + float(microseconds) / 1e6
