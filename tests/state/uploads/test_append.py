"""`uploads.append`: a process killed at any step shows nothing half-written and loses nothing it has kept."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from state.checkpoints.store import CheckpointStore
from state.errors import ChecksumMismatch, OffsetMismatch, UploadLocked
from state.uploads.append import Append
from state.uploads.checksum import Checksum
from state.uploads.resumable import ResumableUploads
from tests.service.files import checkpoint_bytes

ROOT = Path(__file__).parents[3]
CONTENT = checkpoint_bytes({f"layer.{i}.weight": (16, 16) for i in range(20)})
HALF = len(CONTENT) // 2
# Forks one process for each call to the disk: that process appends the rest, and dies before that call.
KILL_AT_EVERY_STEP = """
import itertools, os, shutil, signal, sys
from pathlib import Path
import state.uploads.append
from state.checkpoints.store import CheckpointStore
from state.uploads.resumable import ResumableUploads

state.uploads.append.KEEP_EVERY_S = 0.0
template, name, content = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).read_bytes()
half = len(content) // 2

def dying(call):
    def die_or_call(*args, **options):
        if next(count) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)
    return die_or_call

for last in itertools.count():
    directory = template.with_name(f"killed-{last}")
    shutil.copytree(template, directory)
    if child := os.fork():
        if os.waitpid(child, 0)[1] == 0:
            break
        continue
    count = itertools.count()
    for call in ("pwrite", "fdatasync", "fsync", "rename", "unlink", "fchmod", "ftruncate"):
        setattr(os, call, dying(getattr(os, call)))
    uploads = ResumableUploads(directory, CheckpointStore(directory), expiry_s=60)
    append = uploads.append(name, offset=half)
    for at in range(half, len(content), 6000):
        append.write(content[at : at + 6000])
    append.commit()
    os._exit(0)
print(last)
"""


@pytest.fixture
def uploads(tmp_path):
    return opened(tmp_path / "data")


def opened(directory):
    """Return the uploads as a new process finds them."""
    directory.mkdir(exist_ok=True)
    return ResumableUploads(directory, CheckpointStore(directory), expiry_s=60)


def begin(uploads, content=CONTENT, name="model.safetensors", **options):
    usual = {"limit_bytes": 1 << 30, "metadata": "", "expected_sha256": None, "most": 10}
    return uploads.create("m", name, size_bytes=len(content), **(usual | options))


def send(uploads, upload_id, offset, content, checksum=None):
    append = uploads.append(upload_id, offset=offset, checksum=checksum)
    append.write(content)
    return append.commit()


def published(directory):
    return CheckpointStore(directory).file("m", "model.safetensors")


def test_a_process_killed_at_any_step_leaves_an_upload_that_goes_on(tmp_path):
    template, content = tmp_path / "template", tmp_path / "content"
    content.write_bytes(CONTENT)
    upload = begin(opened(template))
    send(opened(template), upload.id, 0, CONTENT[:HALF])

    arguments = [sys.executable, "-c", KILL_AT_EVERY_STEP, template, upload.id, content]
    done = subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True, text=True)

    steps = int(done.stdout)
    assert steps >= 40
    offsets = set()
    for step in range(steps):
        directory = tmp_path / f"killed-{step}"
        uploads, stored = opened(directory), published(directory)
        assert stored is None or stored.sha256 == hashlib.sha256(CONTENT).hexdigest()
        offset = uploads.get(upload.id).offset
        offsets.add(offset)
        if offset < len(CONTENT):
            send(uploads, upload.id, offset, CONTENT[offset:])
        path = stored_path(directory)
        assert path.read_bytes() == CONTENT
        assert path.stat().st_mode & 0o777 == 0o444
        assert uploads.get(upload.id).complete
    assert min(offsets) == HALF
    assert {len(CONTENT) - 1, len(CONTENT)} <= offsets
    assert len(offsets) == 4


def stored_path(directory):
    return CheckpointStore(directory).file_path("m", "model.safetensors")


def test_a_torn_tail_is_written_over(uploads, tmp_path):
    upload = begin(uploads)
    send(uploads, upload.id, 0, CONTENT[:100])
    with (tmp_path / "data" / "uploads" / upload.id / "data").open("ab") as data:
        data.write(b"torn" * len(CONTENT))

    again = opened(tmp_path / "data")
    assert again.get(upload.id).offset == 100
    assert send(again, upload.id, 100, CONTENT[100:]).file.sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_two_processes_take_turns(uploads, tmp_path):
    """Each knows the hash of its own bytes only, so the last one reads the others' again."""
    other = opened(tmp_path / "data")
    upload = begin(uploads)
    for at in range(0, len(CONTENT), 7000):
        record = send((uploads, other)[at // 7000 % 2], upload.id, at, CONTENT[at : at + 7000])
    assert record.file.sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_one_writes_at_a_time(uploads, tmp_path):
    upload = begin(uploads)
    append = uploads.append(upload.id, offset=0)
    with pytest.raises(UploadLocked):
        opened(tmp_path / "data").append(upload.id, offset=0)
    append.write(CONTENT[:10])
    append.abort()
    assert uploads.get(upload.id).offset == 10
    with pytest.raises(OffsetMismatch):
        uploads.append(upload.id, offset=0)
    assert isinstance(uploads.append(upload.id, offset=10), Append)


def test_a_request_with_a_checksum_counts_whole_or_not_at_all(uploads):
    upload = begin(uploads)
    first, rest = CONTENT[:5000], CONTENT[5000:]
    append = uploads.append(upload.id, offset=0, checksum=sha1(first))
    append.write(b"x" * 5000)
    with pytest.raises(ChecksumMismatch):
        append.commit()
    append.abort()
    append = uploads.append(upload.id, offset=0, checksum=sha1(first))
    append.write(first[:100])
    append.abort()
    assert uploads.get(upload.id).offset == 0
    assert send(uploads, upload.id, 0, first, sha1(first)).offset == 5000
    assert send(uploads, upload.id, 5000, rest).file.sha256 == hashlib.sha256(CONTENT).hexdigest()


def sha1(content):
    return Checksum("sha1", hashlib.sha1(content).digest())


def test_what_is_written_is_read_again_only_where_its_hash_is_unknown(uploads, tmp_path):
    """A part of the file that nobody reads again may be spoiled without being noticed; else it is hashed."""
    digests = []
    for fresh in (False, True):
        upload = begin(uploads, name=f"m{fresh}.safetensors")
        send(uploads, upload.id, 0, CONTENT[:HALF])
        data = tmp_path / "data" / "uploads" / upload.id / "data"
        spoiled = bytearray(data.read_bytes())
        spoiled[-1] ^= 1
        data.write_bytes(spoiled)
        last = opened(tmp_path / "data") if fresh else uploads
        digests.append(send(last, upload.id, HALF, CONTENT[HALF:]).file.sha256)
    right = hashlib.sha256(CONTENT).hexdigest()
    assert digests[0] == right != digests[1]
