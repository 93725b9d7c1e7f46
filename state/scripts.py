"""The transitions of `state/lua`, each one atomic in Redis, and their repetition when Redis lost its data."""

import hashlib
import secrets
import threading
from collections.abc import Callable
from importlib.resources import files
from typing import Any, TypeVar

import redis
from redis.exceptions import NoScriptError

from state.errors import RedisUnavailable
from state.redis import KEY_PREFIX, translated

T = TypeVar("T")

READY = KEY_PREFIX + "ready"
# A server that loses its keys again and again counts as unavailable.
MAX_RESTORES = 10
RESTORE_LIMIT_S = 86_400
READY_IF_KEPT = "if redis.call('DEL', KEYS[1]) == 1 then return redis.call('SET', KEYS[2], 1) end"

REQUIRE_READY = (
    "cancel",
    "claim",
    "counts",
    "create",
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
UNCONDITIONAL = ("delete", "restore", "written")


class StateLost(Exception):  # noqa: N818 - it says what happened, and never leaves this package
    """Redis lost its keys, or was restarted and may have lost the last of them: restore, then repeat."""


class Scripts:
    """Runs the Lua scripts. Most refuse to run on a server that may have lost data, until `restore`."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._restoring = threading.Lock()
        folder = files("state") / "lua"
        common = (folder / "common.lua").read_text()
        self._texts = {
            name: common + (folder / f"{name}.lua").read_text() for name in REQUIRE_READY + UNCONDITIONAL
        }
        self._digests = {
            name: hashlib.sha1(self._texts[name].encode(), usedforsecurity=False).hexdigest()
            for name in REQUIRE_READY
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

    def with_restore(self, action: Callable[[], T], restore_all: Callable[[], None]) -> T:
        """Return the action's result; on `StateLost`, restore all records and repeat the whole action."""
        for _ in range(MAX_RESTORES):
            try:
                return action()
            except StateLost:
                self.restore(restore_all)
        raise RedisUnavailable

    def restore(self, restore_all: Callable[[], None]) -> None:
        """Restore what Redis lost, if it lost anything, and let all scripts run again.

        If Redis loses its data during that, it does not become ready, and the next call restores again.
        """
        with self._restoring:
            if not self.ready():
                key = f"{KEY_PREFIX}restoring:{secrets.token_hex(8)}"
                with translated():
                    self._client.set(key, 1, ex=RESTORE_LIMIT_S)
                restore_all()
                self._make_ready_if_kept(key)

    def ready(self) -> bool:
        """Whether the scripts that require a ready server can run."""
        with translated():
            known: Any = self._client.script_exists(*self._digests.values())
            return all(known) and bool(self._client.exists(READY))

    def _make_ready_if_kept(self, key: str) -> None:
        """Let all scripts run from now on, unless Redis lost a key that was set before."""
        with translated():
            if self._client.eval(READY_IF_KEPT, 2, key, READY):
                for name in REQUIRE_READY:
                    self._client.script_load(self._texts[name])

    def fields(self, job_id: str) -> dict[str, str]:
        """Return the fields of a job's hash; none where there is no such job."""
        with translated():
            fields: Any = self._client.hgetall(f"{KEY_PREFIX}job:{job_id}")
            return dict(fields)

    def dirty(self) -> list[str]:
        """Return the ids of the jobs whose files on disk are not up to date."""
        with translated():
            members: Any = self._client.smembers(f"{KEY_PREFIX}dirty")
            return sorted(members)

    def is_leased(self, job_id: str) -> bool:
        """Whether an attempt may be working on the job, even one that has been canceled."""
        with translated():
            return self._client.zscore(f"{KEY_PREFIX}leases", job_id) is not None
