"""A terminal for what a command says."""

import os
import pty
import sys
import threading
from contextlib import contextmanager, suppress


@contextmanager
def stderr_on_a_terminal(monkeypatch):
    """Make stderr a terminal; give what it has shown, which is whole after the block."""
    ours, theirs = pty.openpty()
    shown = []

    def read():
        with suppress(OSError):  # so Linux tells that the other end was closed
            while block := os.read(ours, 4096):
                shown.append(block.decode())

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        yield shown
    reader.join()
    os.close(ours)
