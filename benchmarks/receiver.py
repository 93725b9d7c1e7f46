"""What uploads are compared with: a bare loop that only receives, hashes and writes."""

import hashlib
import multiprocessing
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

BLOCK_BYTES = 1 << 20


@contextmanager
def bare_receiver(target: Path, *, durable: bool) -> Iterator[int]:
    """Run the loop in a process of its own; yield its port."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, target, durable), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def _serve(pipe: Connection, target: Path, durable: bool) -> None:  # noqa: FBT001 - called by position
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            with connection:
                digest = _receive(connection, target, durable=durable)
                body = b'{"sha256": "%s"}' % digest.encode()
                connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            target.unlink()


def _receive(connection: socket.socket, target: Path, *, durable: bool) -> str:
    """Receive as many bytes as the request's head announces; return their SHA-256."""
    buffer = bytearray(BLOCK_BYTES)
    view = memoryview(buffer)
    length = connection.recv_into(buffer)
    while (end := buffer.find(b"\r\n\r\n", 0, length)) < 0:
        length += connection.recv_into(view[length:])
    head, piece = bytes(view[:end]), view[end + 4 : length]
    rest = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    sha256 = hashlib.sha256()
    with target.open("wb", buffering=0) as file:
        while True:
            sha256.update(piece)
            file.write(piece)
            rest -= len(piece)
            if rest == 0:
                break
            piece = view[: connection.recv_into(buffer)]
        if durable:
            os.fsync(file.fileno())
    return sha256.hexdigest()
