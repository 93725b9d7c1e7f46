"""Files under way: full disks, crashes and what they leave."""

import os
import signal
import stat
import subprocess
import sys

import pytest

from state.errors import NoSpace
from state.files import FLUSH_BYTES, Part, write_atomic

UPLOADER = """
import sys
from pathlib import Path
from state.checkpoints import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]))
upload = store.receive("m", "a.safetensors", content_bytes=1 << 20, limit_bytes=1 << 20)
upload.write(b"\\x40" + bytes(7) + b"{")
print("written", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def uploading(tmp_path):
    """Run a process that is in the middle of an upload."""
    process = subprocess.Popen(
        [sys.executable, "-c", UPLOADER, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    yield process
    process.kill()
    process.communicate()


def parts(tmp_path) -> list[str]:
    return [path.name for path in (tmp_path / "parts").iterdir()]


def test_a_killed_upload_leaves_a_part_alone_which_the_sweep_removes(checkpoints, uploading, tmp_path):
    os.kill(uploading.pid, signal.SIGKILL)
    uploading.wait()
    (part,) = parts(tmp_path)
    assert part.endswith(".part")
    assert not checkpoints.exists("m")
    assert checkpoints.sweep_parts(3600) == 0
    assert checkpoints.sweep_parts(-1) == 1
    assert parts(tmp_path) == []


def test_an_upload_under_way_is_not_swept_however_long_it_takes(checkpoints, uploading, tmp_path):
    assert checkpoints.sweep_parts(-1) == 0
    assert len(parts(tmp_path)) == 1


def test_a_deletion_that_was_killed_is_finished_by_the_sweep(checkpoints, tmp_path):
    (tmp_path / "trash" / "0123" / "deep").mkdir(parents=True)
    assert checkpoints.sweep_parts(-1) == 1
    assert not any((tmp_path / "trash").iterdir())


@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.mkdir(),
        lambda path: path.symlink_to(path),
        os.mkfifo,
        lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK),
    ],
    ids=["a directory", "a link to itself", "a pipe", "a socket"],
)
def test_what_is_no_part_is_left_where_it_lies_and_the_rest_is_swept(checkpoints, tmp_path, put):
    folder = tmp_path / "parts"
    folder.mkdir()
    put(folder / "a.part")
    for name in ("0.part", "b.part"):
        (folder / name).write_bytes(b"left over")
    assert checkpoints.sweep_parts(-1) == 2
    assert parts(tmp_path) == ["a.part"]


def test_a_sweep_of_nothing_finds_nothing(checkpoints):
    assert checkpoints.sweep_parts(-1) == 0


def test_a_disk_too_small_is_told_before_a_byte_is_read(checkpoints, tmp_path):
    with pytest.raises(NoSpace, match="delete jobs or checkpoints"):
        checkpoints.receive("m", "a.safetensors", content_bytes=1 << 61, limit_bytes=1 << 62)
    assert parts(tmp_path) == []


def test_a_disk_that_fills_up_is_told_as_such(tmp_path):
    code = """
import resource, signal, sys
from pathlib import Path
from state.files import Part
from state.errors import NoSpace
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
part = Part(Path(sys.argv[1]), content_bytes=None)
try:
    part.write(bytes(1001))
except NoSpace:
    part.abort()
    print("told")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "told\n"
    assert not any(tmp_path.iterdir())


def test_space_is_reserved_when_the_length_is_known_and_given_back_when_it_was_less(tmp_path):
    part = Part(tmp_path, content_bytes=1 << 20)
    assert part.path.stat().st_blocks * 512 >= 1 << 20
    part.write(b"abc")
    part.seal()
    part.publish(tmp_path / "published")
    assert (tmp_path / "published").read_bytes() == b"abc"
    part.abort()
    assert (tmp_path / "published").exists()


def test_a_file_larger_than_what_is_flushed_early_is_whole(tmp_path):
    part = Part(tmp_path, content_bytes=None)
    content = bytes(range(256)) * (FLUSH_BYTES // 256 * 2 + 1)
    for start in range(0, len(content), FLUSH_BYTES // 3):
        part.write(content[start : start + FLUSH_BYTES // 3])
    part.seal()
    part.publish(tmp_path / "published")
    assert (tmp_path / "published").read_bytes() == content


def test_a_replaced_file_is_whole_and_alone(tmp_path):
    for content in (b"old", b"new"):
        write_atomic(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
