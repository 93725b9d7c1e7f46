"""The sender of every upload: a plain socket and sendfile, so that its own cost is small."""

import http.client
import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path

BOUNDARY = "eckart-benchmark"
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Upload:
    """A request with a file in its body, and what comes before and after the file."""

    path: Path
    target: str
    method: str = "PUT"
    content_type: str = "application/octet-stream"
    before: bytes = b""
    after: bytes = b""

    @property
    def body_bytes(self) -> int:
        return len(self.before) + self.path.stat().st_size + len(self.after)

    def head(self) -> bytes:
        lines = (
            f"{self.method} {self.target} HTTP/1.1",
            "Host: 127.0.0.1",
            "Connection: close",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {self.body_bytes}",
        )
        return "\r\n".join([*lines, "", ""]).encode()


def as_form(path: Path, target: str) -> Upload:
    """Send the file as the only part of a multipart form."""
    disposition = f'Content-Disposition: form-data; name="checkpoint"; filename="{path.name}"'
    before = f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n"
    return Upload(
        path,
        target,
        method="POST",
        content_type=f"multipart/form-data; boundary={BOUNDARY}",
        before=before.encode(),
        after=f"\r\n--{BOUNDARY}--\r\n".encode(),
    )


def send(upload: Upload, port: int) -> tuple[float, str]:
    """Return the seconds from connecting to the last byte of the answer, and the file's SHA-256 in it."""
    with upload.path.open("rb") as file:
        begun = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
            connection.sendall(upload.head() + upload.before)
            connection.sendfile(file)
            connection.sendall(upload.after)
            response = http.client.HTTPResponse(connection)
            response.begin()
            answer = json.loads(response.read())
        seconds = time.perf_counter() - begun
    if response.status != http.client.CREATED:
        raise RuntimeError(f"{upload.method} {upload.target}: {response.status} {answer}")
    return seconds, answer["sha256"] if "sha256" in answer else answer["files"][0]["sha256"]
