"""`service.standalone.run_dir`: one process at a time holds the directory; pid files are never partial."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from service.standalone.run_dir import DataDirectoryError, locked_run_dir, remove_pid, write_own_pid


def test_a_second_start_is_refused_with_the_id_of_the_process_that_holds_the_directory(tmp_path):
    run_dir = tmp_path / "data" / "run"
    with locked_run_dir(run_dir), pytest.raises(DataDirectoryError) as refusal, locked_run_dir(run_dir):
        pass
    assert str(run_dir.parent) in str(refusal.value)
    assert str(os.getpid()) in str(refusal.value)


def test_the_lock_file_of_a_dead_start_is_no_obstacle(tmp_path):
    (tmp_path / "lock").write_text(f"{os.getpid()}\n")
    with locked_run_dir(tmp_path):
        pass
    with locked_run_dir(tmp_path):
        pass


# Holds the lock, starts a child that inherits it, and dies without a word.
DIES_BEFORE_ITS_CHILD = """
import os, pathlib, subprocess, sys
from service.standalone.run_dir import locked_run_dir
with locked_run_dir(pathlib.Path(sys.argv[1])) as lock:
    child = subprocess.Popen(["sleep", "60"], pass_fds=[lock], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def leftover(tmp_path):
    """Return the process id of a child that holds the lock of `tmp_path` after its parent has died."""
    start = subprocess.run(
        [sys.executable, "-c", DIES_BEFORE_ITS_CHILD, tmp_path], stdout=subprocess.PIPE, check=False
    )
    assert start.returncode == -signal.SIGKILL
    pid = int(start.stdout)
    yield pid
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_leftover_that_does_not_end_keeps_the_next_start_out(tmp_path, leftover):
    with pytest.raises(DataDirectoryError, match="in use"), locked_run_dir(tmp_path, wait_s=0.3):
        pass


def test_a_leftover_that_ends_lets_the_next_start_in(tmp_path, leftover):
    with (
        subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {leftover}"]),
        locked_run_dir(tmp_path, wait_s=30),
    ):
        pass


def test_a_place_where_no_directory_can_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataDirectoryError, match="ECKART_DATA_DIR"),
        locked_run_dir(tmp_path / "file" / "run"),
    ):
        pass


def test_a_process_id_is_replaced_whole_and_removed_once(tmp_path):
    (tmp_path / "api.pid").write_text("1234567890\n")
    write_own_pid(tmp_path, "api")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("api.pid", f"{os.getpid()}\n")]
    remove_pid(tmp_path, "api")
    remove_pid(tmp_path, "api")
    assert list(tmp_path.iterdir()) == []
