"""`service.standalone.supervisor` with real processes: restarts, order, and no process left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.standalone.supervisor import Child, ChildSpec

ROOT = Path(__file__).parents[3]
TREE = [sys.executable, "-m", "tests.service.standalone.small_tree"]
NAMES = ("redis", "worker", "api")


class Tree:
    """A running `small_tree.py`."""

    def __init__(self, data_dir, api, log):
        self.data_dir = data_dir
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*TREE, data_dir, api], cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True
            )

    def pid(self, name):
        return int((self.data_dir / "run" / f"{name}.pid").read_text())

    def nested(self, name):
        return int((self.data_dir / f"{name}.mark").read_text())

    def pids(self):
        """Return all processes of the tree except its root: the children, and what the worker started."""
        return [*map(self.pid, NAMES), self.nested("worker")]

    def leftovers(self):
        return sorted(path.name for path in (self.data_dir / "run").iterdir() if path.name != "lock")


@pytest.fixture
def start(short_dir, tmp_path):
    """Start a tree and wait until it is ready."""
    trees = []

    def start(*, api="nest", log=None):
        trees.append(tree := Tree(short_dir, api, log or tmp_path / f"log-{len(trees)}"))
        assert tree.process.stdout.readline() == "ready\n", log or tree.log.read_text()
        return tree

    yield start
    for tree in trees:
        tree.process.send_signal(signal.SIGTERM)
        tree.process.send_signal(signal.SIGTERM)
        tree.process.communicate(timeout=60)


def test_every_child_stands_in_its_pid_file(start, is_running):
    tree = start()
    assert all(is_running(pid) for pid in tree.pids())
    assert (tree.data_dir / "run").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_child_comes_back_and_the_supervisor_says_so(start, eventually, name, is_running):
    tree = start()
    before = tree.pid(name)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: tree.pid(name) != before and is_running(tree.pid(name)))
    told = tree.log.read_text()
    assert f"{name} (process {before}) was killed by signal 9" in told
    assert "restarting it" in told


@pytest.mark.parametrize(
    ("steady_s", "told"), [(0, ["at once", "at once"]), (600, ["at once", "in 0.5 s", "in 1 s"])]
)
def test_a_child_is_restarted_later_each_time_unless_it_ran_well_in_between(
    short_dir, eventually, capfd, monkeypatch, steady_s, told
):
    monkeypatch.setattr("service.standalone.supervisor.STEADY_S", steady_s)
    spec = ChildSpec(name="nest", command=("sleep", "600"), environment=os.environ)
    child = Child(spec, short_dir)
    child.start()
    for when in told:
        before = (short_dir / "nest.pid").read_text()
        os.kill(int(before), signal.SIGKILL)
        eventually(lambda: child.poll() or (short_dir / "nest.pid").read_text() != before)  # noqa: B023
        assert f"restarting it {when}" in capfd.readouterr().err
    child.stop(now=lambda: True)


def test_what_a_dead_child_started_goes_before_its_successor_comes(start, eventually, is_running):
    tree = start()
    before = tree.pid("worker")
    nested = tree.nested("worker")
    os.kill(before, signal.SIGKILL)
    eventually(lambda: tree.pid("worker") != before)
    assert not is_running(nested)


def test_a_log_on_a_full_disk_ends_nothing(start, eventually, is_running):
    tree = start(log=Path("/dev/full"))
    before = tree.pid("worker")
    os.kill(before, signal.SIGKILL)
    eventually(lambda: tree.pid("worker") != before and is_running(tree.pid("worker")))
    assert tree.process.poll() is None


def test_a_child_that_cannot_be_started_on_a_full_disk_is_started_when_there_is_space(start, eventually):
    tree = start()
    part = tree.data_dir / "run" / "worker.pid.part"
    part.symlink_to("/dev/full")
    before = tree.pid("worker")
    os.kill(before, signal.SIGKILL)
    eventually(lambda: "worker cannot be started" in tree.log.read_text())
    assert tree.process.poll() is None

    part.unlink()
    eventually(lambda: tree.pid("worker") != before)


def test_the_children_end_in_order_and_redis_last(start):
    tree = start()
    tree.process.send_signal(signal.SIGINT)
    tree.process.wait(timeout=60)
    assert (tree.data_dir / "ended").read_text() == "api with redis up\nworker with redis up\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything_and_leaves_nothing(start, number, is_running):
    tree = start()
    pids = tree.pids()
    tree.process.send_signal(number)
    assert tree.process.wait(timeout=60) == 0
    assert not any(is_running(pid) for pid in pids)
    assert tree.leftovers() == []


def test_a_second_signal_kills_what_does_not_listen(start, is_running):
    tree = start(api="deaf")
    pids = tree.pids()
    tree.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        tree.process.wait(timeout=1)
    tree.process.send_signal(signal.SIGINT)
    assert tree.process.wait(timeout=60) == 0
    assert not any(is_running(pid) for pid in pids)


def test_nothing_outlives_a_killed_supervisor_and_the_next_start_works(start, eventually, is_running):
    tree = start()
    pids = tree.pids()
    tree.process.kill()
    tree.process.wait()
    eventually(lambda: not any(is_running(pid) for pid in pids))
    assert tree.leftovers() != []
    again = start()
    eventually(lambda: all(is_running(pid) for pid in again.pids()))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes by their environment in /proc")
@pytest.mark.parametrize("delay_s", [0.15, 0.2, 0.25, 0.3, 0.4, 0.6])
def test_nothing_outlives_a_supervisor_that_is_killed_while_it_starts(short_dir, eventually, delay_s):
    mark = f"ECKART_TEST_TREE={short_dir}"
    name, _, value = mark.partition("=")
    with subprocess.Popen([*TREE, short_dir, "nest"], cwd=ROOT, env=os.environ | {name: value}) as tree:
        time.sleep(delay_s)
        tree.kill()

    eventually(lambda: not processes_with(mark.encode()))


def processes_with(entry):
    """Return the ids of the processes that have this entry in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if entry in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
    return found


def test_a_child_that_dies_again_and_again_before_it_is_ready_ends_the_start(short_dir):
    start = subprocess.run(
        [*TREE, short_dir, "broken"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert start.returncode != 0
    assert "StartFailedError: api died 3 times before it was ready" in start.stderr
    assert [path.name for path in (short_dir / "run").iterdir()] == ["lock"]


def test_a_child_that_refuses_its_settings_ends_the_start_at_once(short_dir):
    start = subprocess.run(
        [*TREE, short_dir, "misled"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert start.returncode != 0
    assert "StartFailedError: api cannot run with these settings" in start.stderr
    assert start.stderr.count("restarting it") == 1
    assert [path.name for path in (short_dir / "run").iterdir()] == ["lock"]
