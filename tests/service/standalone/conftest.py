"""Fixtures for the tests of `service.standalone`."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest


@pytest.fixture
def short_dir():
    """Make a directory with a path short enough for a socket in it, wherever TMPDIR is."""
    path = Path(tempfile.mkdtemp(prefix="ek-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def eventually():
    """Poll until a condition holds, and return its value; fail if it never does."""

    def wait(condition, *, limit_s=30.0):
        deadline = time.monotonic() + limit_s
        while not (value := condition()):
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.02)
        return value

    return wait


@pytest.fixture
def is_running():
    """Whether a process runs; a zombie does not."""

    def state(pid):
        if not Path("/proc/self").exists():
            told = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], stdout=subprocess.PIPE, check=False)
            return told.stdout.decode().strip()[:1]
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return ""

    return lambda pid: state(pid) not in ("", "Z", "X")
