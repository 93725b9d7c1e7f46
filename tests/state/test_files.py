"""state/files.py: a file appears whole or not at all; locks exclude others and are always released."""

import hashlib
import os
import stat
import subprocess
import sys
import threading
import time

import pytest

from state.errors import FilesLocked
from state.files import FLUSH_BYTES, AtomicFile, is_orphaned, locked, write_atomic
from tests.stopped import stopped_holder

CONTENT = b"first, second"


def names_in(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(params=["next to it", "parts"])
def make(request, tmp_path):
    """Return what begins a file, with its temporary file next to it or in a shared folder."""
    folder = tmp_path / "parts" if request.param == "parts" else None
    return lambda path, **options: AtomicFile(path, parts=folder, **options)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "published").mkdir()
    return tmp_path / "published" / "model.safetensors"


def temporary_files(path) -> list[str]:
    return [str(part) for part in path.parent.parent.rglob("*.part")]


@pytest.mark.parametrize("durable", [True, False])
def test_a_published_file_holds_what_was_written(make, path, durable):
    with make(path, durable=durable) as file:
        file.write(b"first, ")
        file.write(memoryview(b"second"))
        assert not path.exists()
        published = file.publish()
    assert path.read_bytes() == CONTENT
    assert (published.name, published.size_bytes) == ("model.safetensors", 13)
    assert published.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert temporary_files(path) == []


def test_a_published_file_replaces_what_was_there(make, path):
    for content in (b"old", b"new"):
        with make(path) as file:
            file.write(content)
            file.publish()
    assert path.read_bytes() == b"new"


def test_a_block_that_ends_without_publishing_leaves_nothing(make, path):
    with make(path) as file:
        file.write(CONTENT)
    file = make(path)
    with pytest.raises(RuntimeError), file:
        raise RuntimeError
    assert not path.exists()
    assert temporary_files(path) == []


def test_what_was_written_can_be_described_before_it_is_published(make, path):
    with make(path) as file:
        file.write(CONTENT[:5])
        assert file.info.sha256 == hashlib.sha256(CONTENT[:5]).hexdigest()
        file.write(CONTENT[5:])
        assert file.info == file.publish()


def test_an_abort_after_publishing_removes_nothing(make, path):
    with make(path) as file:
        file.write(CONTENT)
        file.publish()
        file.abort()
    file.abort()
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("mode", [0o444, 0o600])
def test_permissions_are_those_asked_for_and_never_wider_before(make, path, mode):
    with make(path, mode=mode) as file:
        assert stat.S_IMODE(file.part.stat().st_mode) == 0o600
        file.publish()
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_reserved_space_that_was_not_needed_is_given_back(make, path):
    with make(path, reserve_bytes=1 << 20) as file:
        assert file.part.stat().st_blocks * 512 >= 1 << 20
        file.write(b"abc")
        file.publish()
    assert path.read_bytes() == b"abc"


def test_space_that_cannot_be_reserved_is_noticed_before_the_first_byte(make, path):
    with pytest.raises(OSError, match=r"No space|too large|Invalid"):
        make(path, reserve_bytes=1 << 62)
    assert temporary_files(path) == []


def test_a_file_larger_than_what_is_flushed_early_is_whole(path):
    content = bytes(range(256)) * (FLUSH_BYTES // 256 * 2 + 1)
    with AtomicFile(path) as file:
        for start in range(0, len(content), FLUSH_BYTES // 3):
            file.write(content[start : start + FLUSH_BYTES // 3])
        file.publish()
    assert path.read_bytes() == content


def test_a_temporary_file_of_a_killed_process_is_replaced(path):
    path.with_name(path.name + ".part").write_bytes(b"half of a longer file")
    write_atomic(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert names_in(path.parent) == [path.name]


def test_a_temporary_file_that_was_taken_away_is_not_published(make, path):
    with make(path) as file:
        file.part.unlink()
        with pytest.raises(FileExistsError, match="Another process"):
            file.publish()
    assert not path.exists()


def test_of_two_writers_the_later_one_wins_and_the_earlier_one_fails(path):
    with AtomicFile(path) as first, AtomicFile(path) as second:
        first.write(b"first")
        second.write(b"second")
        with pytest.raises(FileExistsError, match="Another process"):
            first.publish()
        second.publish()
    assert path.read_bytes() == b"second"
    assert names_in(path.parent) == [path.name]


def test_an_earlier_writer_that_fails_does_not_disturb_the_later_one(path):
    first = AtomicFile(path)
    with AtomicFile(path) as second:
        second.write(b"second")
        first.abort()
        second.publish()
    assert path.read_bytes() == b"second"


def test_a_file_in_a_shared_folder_is_an_orphan_only_when_nobody_writes_it(path, tmp_path):
    with AtomicFile(path, parts=tmp_path / "parts") as file:
        assert not is_orphaned(file.part)
    (tmp_path / "left.part").touch()
    assert is_orphaned(tmp_path / "left.part")
    assert not is_orphaned(file.part)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from state.files import AtomicFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
with AtomicFile(Path(sys.argv[1])) as file:
    for _ in range(5):
        file.write(bytes(500_000))
    file.publish()
"""


def test_a_full_disk_leaves_no_temporary_file(path):
    """The limit on a file's size stands for the disk's."""
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False
    )
    assert "OSError: [Errno 27]" in ended.stderr
    assert not path.exists()
    assert temporary_files(path) == []


# Locks.


def test_one_holds_the_lock_at_a_time(tmp_path):
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with locked(tmp_path / "locks" / "one"):
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)


def test_an_error_inside_releases_the_lock(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / "lock"):
        raise RuntimeError
    with locked(tmp_path / "lock"):
        pass


@pytest.mark.timeout(20)
def test_a_child_forked_meanwhile_does_not_keep_the_lock(tmp_path):
    reading, writing = os.pipe()
    with locked(tmp_path / "lock"):
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    with locked(tmp_path / "lock"):
        os.close(writing)
    os.waitpid(child, 0)
    os.close(reading)


def test_nobody_waits_for_ever_for_the_lock_of_a_stopped_process(tmp_path):
    with stopped_holder(tmp_path / "lock"), pytest.raises(FilesLocked), locked(tmp_path / "lock", wait_s=0.1):
        pass
    with locked(tmp_path / "lock", wait_s=0):
        pass


def allocated_bytes(file) -> int:
    return file.part.stat().st_blocks * 512


def test_space_is_reserved_in_steps_ahead_of_what_is_written(make, path):
    with make(path, reserve_bytes=200 << 20) as file:
        arrived = 0
        for nbytes in (1 << 20, 8 << 20, 1 << 20, 32 << 20):
            file.write(bytes(nbytes))
            arrived += nbytes
            # At most as much again as has arrived.
            assert arrived <= allocated_bytes(file) <= 2 * arrived + (1 << 20)
        for _ in range(100):
            file.write(bytes(1 << 20))
        assert allocated_bytes(file) <= 201 << 20


def test_an_upload_that_trickles_holds_a_small_step_alone(make, path):
    with make(path, reserve_bytes=200 << 20) as file:
        for _ in range(4):
            file.write(b"few")
            assert allocated_bytes(file) <= 2 << 20
