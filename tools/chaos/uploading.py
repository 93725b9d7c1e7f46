"""The ways to store a checkpoint that take long enough to be killed: a slow PUT, and tus in steps."""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING

from tools.chaos.ledger import LOST, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.chaos.connection import Connection
    from tools.chaos.samples import Sample

BLOCK_BYTES = 300_000
BLOCK_PAUSE_S = 0.01
NAME = "model.safetensors"
TUS = {"Tus-Resumable": "1.0.0"}


def put(connection: Connection, ledger: Ledger, sample: Sample) -> None:
    """Send the file slowly in one request, until one of them is answered."""

    def slowly() -> Iterator[bytes]:
        for block in blocks(sample.content):
            time.sleep(BLOCK_PAUSE_S)
            yield block

    path = f"/v1/checkpoints/{sample.checkpoint}/{NAME}"
    answer = connection.until_answered("PUT", path, content=slowly)
    if answer.status_code not in {200, 201}:
        ledger.fault(LOST, f"PUT {path}: {answer.status_code} {answer.text[:300]}")
    require_stored(connection, ledger, sample)


def send_by_tus(connection: Connection, ledger: Ledger, sample: Sample) -> None:
    """Send the file in steps; after a step that failed, go on where the service is."""
    told = {"checkpoint": sample.checkpoint, "filename": NAME}
    names = ",".join(f"{key} {base64.b64encode(text.encode()).decode()}" for key, text in told.items())
    headers = {**TUS, "Upload-Length": str(len(sample.content)), "Upload-Metadata": names}
    begun = connection.until_answered("POST", "/v1/uploads", headers=headers)
    address = f"/v1/uploads/{begun.headers['Location'].rpartition('/')[2]}"
    offset = 0
    while offset < len(sample.content):
        step = {**TUS, "Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
        block = sample.content[offset : offset + BLOCK_BYTES]
        answer = connection.once("PATCH", address, content=block, headers=step)
        if answer is None or answer.status_code == 409:  # the offset is another one
            answer = connection.until_answered("HEAD", address, headers=TUS)
        if answer.status_code not in {200, 204}:
            ledger.fault(LOST, f"upload {address} at {offset}: {answer.status_code} {answer.text[:300]}")
            return
        before, offset = offset, int(answer.headers["Upload-Offset"])
        if offset < before:
            ledger.fault(LOST, f"upload {address} went back from {before} to {offset}")
        connection.check_time()
    require_stored(connection, ledger, sample)


def require_stored(connection: Connection, ledger: Ledger, sample: Sample) -> None:
    """Check that a file that was answered as stored is there."""
    stored = connection.until_answered("GET", f"/v1/checkpoints/{sample.checkpoint}")
    if stored.status_code != 200 or not stored.json()["complete"]:
        ledger.fault(LOST, f"checkpoint {sample.checkpoint}: {stored.status_code} {stored.text[:300]}")


def blocks(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), BLOCK_BYTES):
        yield content[start : start + BLOCK_BYTES]


UPLOADS = {"put": put, "tus": send_by_tus}
