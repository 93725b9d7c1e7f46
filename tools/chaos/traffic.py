"""Clients of a tree that order one job after another, and bring each to its end."""

from __future__ import annotations

import json
import random
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tools.chaos.connection import Connection, UnsettledError
from tools.chaos.ledger import BAD_ANSWER, DOUBLED, LOST, Ledger, Promise
from tools.chaos.uploading import UPLOADS

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    import httpx

    from tools.chaos.samples import Sample

TERMINAL = frozenset({"succeeded", "failed", "canceled"})
# Of these a job that was killed too often without progress fails; it can be resumed.
RESUMABLE = ("worker-lost", "worker-trouble")
# What a lane does with a job, and how often.
WAYS = {
    "stored": 6,
    "upload": 3,
    "put": 2,
    "tus": 2,
    "doubled": 2,
    "cancel": 2,
    "delete": 2,
}


class Lane:
    """Orders one job after another, each in a way that a seeded generator chooses, and checks its end."""

    def __init__(self, url: str, ledger: Ledger, samples: list[Sample], seed: str) -> None:
        self._ledger = ledger
        self._samples = samples
        self._random = random.Random(seed)
        self.connection = Connection(url, ledger)

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            way = self._random.choices(list(WAYS), list(WAYS.values()))[0]
            try:
                self._order(way, self._random.choice(self._samples))
            except UnsettledError:
                self._ledger.fault(LOST, f"a job in the way `{way}` did not come to its end")
            except Exception as error:  # noqa: BLE001 - a lane must go on, and say what it found
                self._ledger.fault(BAD_ANSWER, f"in the way `{way}`: {error!r}")

    def _order(self, way: str, sample: Sample) -> None:
        if way in UPLOADS:
            sample = replace(sample, checkpoint=f"{way}-{secrets.token_hex(6)}")
            UPLOADS[way](self.connection, self._ledger, sample)
        send = self._post_upload if way == "upload" else self._post_stored
        key = secrets.token_hex(8)
        promise = self._promised(send(sample, key), sample)
        if way == "doubled":
            self._post_again(send, sample, key, promise)
        if way in {"cancel", "delete"}:
            time.sleep(self._random.random() * 0.5)
        if way == "cancel":
            self._cancel(promise)
        if way != "delete":
            self._await_end(promise)
        if way in {"delete", *UPLOADS} or self._random.random() < 0.4:
            self._delete(promise)
        if way in UPLOADS:
            self._delete_checkpoint(sample.checkpoint)

    def _post_stored(self, sample: Sample, key: str) -> httpx.Response:
        body = {"checkpoint": sample.checkpoint, "spec": sample.spec}
        return self.connection.until_answered("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": key})

    def _post_upload(self, sample: Sample, key: str) -> httpx.Response:
        return self.connection.until_answered(
            "POST",
            "/v1/jobs",
            files={"checkpoint": ("model.safetensors", sample.content)},
            data={"spec": json.dumps(sample.spec)},
            headers={"Idempotency-Key": key},
        )

    def _promised(self, answer: httpx.Response, sample: Sample) -> Promise:
        if answer.status_code != 202:
            raise ValueError(f"POST /v1/jobs: {answer.status_code} {answer.text[:300]}")
        return self._ledger.promise(answer.json()["id"], sample.sha256)

    def _post_again(
        self, send: Callable[[Sample, str], httpx.Response], sample: Sample, key: str, promise: Promise
    ) -> None:
        with ThreadPoolExecutor(2) as pool:
            again = [pool.submit(send, sample, key) for _ in range(2)]
            ids = {each.result().json()["id"] for each in again}
        if ids != {promise.id}:
            self._ledger.fault(DOUBLED, f"one idempotency key made the jobs {promise.id} and {ids}")

    def _cancel(self, promise: Promise) -> None:
        promise.cancel_asked = True
        answer = self.connection.until_answered("POST", f"/v1/jobs/{promise.id}/cancel")
        if answer.status_code != 200 or answer.json()["state"] not in TERMINAL:
            self._ledger.fault(LOST, f"cancel of {promise.id}: {answer.status_code} {answer.text[:300]}")

    def _await_end(self, promise: Promise) -> None:
        while True:
            resumed, before = promise.resumed, promise.ended
            answer = self.connection.until_answered("GET", f"/v1/jobs/{promise.id}", params={"wait": 1})
            if answer.status_code != 200:
                self._ledger.fault(LOST, f"GET of {promise.id}: {answer.status_code}")
                return
            job = answer.json()
            self._ledger.saw_end(promise, job["state"], resumed=resumed, ended_before=before)
            if job["state"] == "failed" and self._resume(promise, job):
                continue
            if job["state"] in TERMINAL:
                return
            self.connection.check_time()

    def _resume(self, promise: Promise, job: dict[str, Any]) -> bool:
        """Resume a job that was killed too often; False: it failed of something else, which is a fault."""
        kind = str(job["error"]["type"]).rpartition(":")[2]
        if kind not in RESUMABLE:
            self._ledger.fault(LOST, f"job {promise.id} failed: {job['error']['detail']}")
            return False
        self._ledger.resume(promise)
        # Of a request that was repeated only the first is 202.
        answer = self.connection.until_answered("POST", f"/v1/jobs/{promise.id}/resume")
        self._ledger.resume(promise)
        self._ledger.resumed += 1
        if answer.status_code not in {202, 409}:
            self._ledger.fault(LOST, f"resume of {promise.id}: {answer.status_code} {answer.text[:300]}")
        return True

    def _delete(self, promise: Promise) -> None:
        promise.delete_asked = True
        answer = self.connection.until_answered("DELETE", f"/v1/jobs/{promise.id}")
        after = self.connection.until_answered("GET", f"/v1/jobs/{promise.id}")
        promise.deleted = True
        if answer.status_code not in {204, 404} or after.status_code != 404:
            self._ledger.fault(
                LOST, f"DELETE of {promise.id}: {answer.status_code}, then GET: {after.status_code}"
            )

    def _delete_checkpoint(self, checkpoint: str) -> None:
        answer = self.connection.until_answered("DELETE", f"/v1/checkpoints/{checkpoint}")
        if answer.status_code not in {204, 404}:
            self._ledger.fault(LOST, f"DELETE of {checkpoint}: {answer.status_code} {answer.text[:300]}")
