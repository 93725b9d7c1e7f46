"""A client that looks at the jobs of a tree all the time, and reads what they have made."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from tools.chaos.connection import Connection
from tools.chaos.ledger import HALF_READ, LOST, Ledger, Promise

if TYPE_CHECKING:
    import threading


class Reader:
    """Looks at jobs all the time: what is said to have succeeded can be read, whole, from then on."""

    def __init__(self, url: str, ledger: Ledger, seed: str) -> None:
        self._ledger = ledger
        self._random = random.Random(seed)
        self.connection = Connection(url, ledger)

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            kept = self._ledger.kept()
            if kept:
                # Mostly the newest, around whose ends most happens.
                newest = self._random.random() < 0.7
                self.look(self._random.choice(kept[-6:] if newest else kept))
            time.sleep(0.02)

    def look(self, promise: Promise) -> bool:
        """Read a job, and its result if it has one; False: no answer for now."""
        resumed, before = promise.resumed, promise.ended
        answer = self.connection.once("GET", f"/v1/jobs/{promise.id}")
        if answer is None:
            return False
        if promise.delete_asked:
            return True
        if answer.status_code != 200:
            self._ledger.fault(LOST, f"GET of {promise.id}: {answer.status_code} {answer.text[:200]}")
            return True
        state = answer.json()["state"]
        self._ledger.saw_end(promise, state, resumed=resumed, ended_before=before)
        return state != "succeeded" or self._read_result(promise)

    def _read_result(self, promise: Promise) -> bool:
        how = self._random.choice(("checkpoint", "archive", "report"))
        answer = self.connection.once("GET", f"/v1/jobs/{promise.id}/{how}")
        if answer is None:
            return False
        if promise.delete_asked:
            return True
        self._ledger.reads += 1
        if answer.status_code != 200:
            why = f"{how} of {promise.id}, which has succeeded: {answer.status_code} {answer.text[:200]}"
            self._ledger.fault(LOST, why)
        elif digest_of(how, answer.content) != promise.sha256:
            self._ledger.fault(HALF_READ, f"{how} of {promise.id} has other bytes than an undisturbed run")
        return True


def digest_of(how: str, content: bytes) -> str:
    """Return the SHA-256 of the weights that an answer holds or names; '' where it cannot be read."""
    with suppress(ValueError, KeyError, tarfile.TarError):
        if how == "report":
            (file,) = (
                each
                for each in json.loads(content)["output"]["files"]
                if each["name"].endswith(".safetensors")
            )
            return str(file["sha256"])
        if how == "archive":
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                member = archive.extractfile("model.safetensors")
                content = member.read() if member else b""
        return hashlib.sha256(content).hexdigest()
    return ""
