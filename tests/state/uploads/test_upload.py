"""uploads/upload.py: a file is limited, hashed and checked while it arrives, and visible only when stored."""

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

from schemas.format.errors import CheckpointError
from schemas.format.index import MAX_INDEX_BYTES
from state.errors import DigestMismatch, OutOfSpace, TooLarge

INDEX = "m.safetensors.index.json"
PLAIN = "model.safetensors"


def names_in(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("block_bytes", [1, 7, 100, 1 << 20])
def test_what_was_sent_is_stored_for_any_size_of_blocks(send, checkpoints, safetensors, block_bytes):
    body = safetensors()
    stored = send("m", PLAIN, body, block_bytes=block_bytes)
    assert (stored.info.size_bytes, stored.info.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert stored.created
    path = checkpoints.get("m").path(PLAIN)
    assert path.read_bytes() == body
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_a_length_over_the_limit_is_refused_before_a_byte_is_read(checkpoints, left):
    with pytest.raises(TooLarge) as refused:
        checkpoints.receive("m", PLAIN, content_bytes=101, limit_bytes=100)
    assert refused.value.values["limit_bytes"] == 100
    assert left() == set()


def test_a_body_that_grows_over_the_limit_is_refused_at_that_byte(checkpoints, safetensors, left):
    body = safetensors()
    limit_bytes = len(body) - 1
    with checkpoints.receive("m", PLAIN, content_bytes=None, limit_bytes=limit_bytes) as upload:
        upload.write(body[:limit_bytes])
        with pytest.raises(TooLarge):
            upload.write(body[limit_bytes:])
    assert left() == set()


def test_a_wrong_digest_is_refused_and_leaves_nothing(checkpoints, safetensors, left):
    body = safetensors()
    another = hashlib.sha256(b"another").digest()
    with checkpoints.receive(
        "m", PLAIN, content_bytes=len(body), limit_bytes=1 << 20, expected_sha256=another
    ) as upload:
        upload.write(body)
        with pytest.raises(DigestMismatch, match=hashlib.sha256(body).hexdigest()):
            upload.commit()
    assert left() == set()


def test_the_right_digest_is_accepted(checkpoints, safetensors):
    body = safetensors()
    digest = hashlib.sha256(body).digest()
    with checkpoints.receive(
        "m", PLAIN, content_bytes=len(body), limit_bytes=1 << 20, expected_sha256=digest
    ) as upload:
        upload.write(memoryview(body))
        assert upload.commit().created


@pytest.mark.parametrize("end", [0, 5, 8, 40, -1])
def test_a_file_that_ends_early_is_refused_and_leaves_nothing(checkpoints, safetensors, left, end):
    with checkpoints.receive("m", PLAIN, content_bytes=None, limit_bytes=1 << 20) as upload:
        upload.write(safetensors()[:end])
        with pytest.raises(CheckpointError):
            upload.commit()
    assert left() == set()
    assert not checkpoints.exists("m")


def test_a_bad_header_is_refused_with_its_first_bad_block(checkpoints, left):
    with (
        checkpoints.receive("m", PLAIN, content_bytes=1 << 20, limit_bytes=1 << 40) as upload,
        pytest.raises(CheckpointError),
    ):
        upload.write(b"PK\x03\x04" + bytes(100))
    assert left() == set()


def test_an_index_is_refused_at_the_byte_that_is_too_much(checkpoints, left):
    with checkpoints.receive("m", INDEX, content_bytes=None, limit_bytes=1 << 40) as upload:
        upload.write(b" " * MAX_INDEX_BYTES)
        with pytest.raises(CheckpointError) as refused:
            upload.write(b" ")
    assert refused.value.fault == "index-too-large"
    assert left() == set()


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"weight_map": {"a": "../x.safetensors"}}'])
def test_a_bad_index_is_refused_and_leaves_nothing(send, left, body):
    with pytest.raises(CheckpointError):
        send("m", INDEX, body)
    assert left() == set()


UPLOADER = """
import sys
from pathlib import Path
from state.checkpoints.store import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]))
upload = store.receive("m", "a.safetensors", content_bytes=1 << 20, limit_bytes=1 << 20)
upload.write(b"\\x40" + bytes(7) + b"{")
print("written", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def uploading(tmp_path):
    """Run a process in the middle of an upload."""
    process = subprocess.Popen(
        [sys.executable, "-c", UPLOADER, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    yield process
    process.kill()
    process.communicate()


def test_a_killed_upload_leaves_only_a_temporary_file_which_the_sweep_removes(
    checkpoints, uploading, tmp_path
):
    os.kill(uploading.pid, signal.SIGKILL)
    uploading.wait()
    (part,) = names_in(tmp_path / "parts")
    assert part.endswith(".part")
    assert not checkpoints.exists("m")
    # At once as soon as it cannot be one that begins, since this kernel knows that nobody has its lock.
    assert checkpoints.sweep_parts(3600) == 0
    aged = tmp_path / "parts" / part
    os.utime(aged, (time.time() - 6, time.time() - 6))
    foreign = aged.with_name("00000000-1.part")
    shutil.copy2(aged, foreign)
    assert checkpoints.sweep_parts(3600) == 1
    assert names_in(tmp_path / "parts") == [foreign.name]
    assert checkpoints.sweep_parts(-1) == 1


def test_an_upload_in_progress_is_not_swept_however_long_it_takes(checkpoints, uploading, tmp_path):
    assert checkpoints.sweep_parts(-1) == 0
    assert len(names_in(tmp_path / "parts")) == 1


def test_a_disk_too_small_is_refused_before_a_byte_is_read(checkpoints, tmp_path):
    with pytest.raises(OutOfSpace, match="Delete jobs or checkpoints"):
        checkpoints.receive("m", "a.safetensors", content_bytes=1 << 61, limit_bytes=1 << 62)
    assert names_in(tmp_path / "parts") == []


def test_a_disk_that_fills_up_during_an_upload_is_named_as_such(tmp_path, safetensors):
    (tmp_path / "body").write_bytes(safetensors(**{"w.weight": (400, 400)}))
    code = """
import resource, signal, sys
from pathlib import Path
from state.checkpoints.store import CheckpointStore
from state.errors import OutOfSpace
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
root = Path(sys.argv[1])
upload = CheckpointStore(root).receive("m", "a.safetensors", content_bytes=None, limit_bytes=1 << 30)
try:
    with upload:
        upload.write((root / "body").read_bytes())
except OutOfSpace:
    print("no space")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "no space\n"
    assert names_in(tmp_path / "parts") == []
