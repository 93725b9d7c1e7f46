"""`state.uploads.resumable`: who sees an upload, how many there may be, and when one is swept away."""

import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from state.checkpoints.store import CheckpointStore
from state.errors import ContentConflict, TooManyUploads, UploadNotFound
from state.uploads import resumable
from state.uploads.resumable import ResumableUploads
from tests.service.files import MODEL


def opened(directory, owner="", expiry_s=60):
    return ResumableUploads(directory, CheckpointStore(directory, owner), expiry_s=expiry_s)


def begin(uploads, **options):
    usual = {
        "size_bytes": len(MODEL),
        "limit_bytes": 1 << 30,
        "metadata": "",
        "expected_sha256": None,
        "most": 2,
    }
    return uploads.create("m", "model.safetensors", **(usual | options))


def send(uploads, upload, content=MODEL):
    append = uploads.append(upload.id, offset=0)
    append.write(content)
    return append.commit()


def expire(directory, upload):
    """Put the record's end into the past."""
    record = directory / "uploads" / upload.id / "upload.json"
    past = datetime.now(UTC) - timedelta(seconds=1)
    record.write_text(json.dumps(json.loads(record.read_bytes()) | {"expires_at": past.isoformat()}))


def test_an_upload_is_its_owners_alone(tmp_path):
    alice, bob = opened(tmp_path, "alice"), opened(tmp_path, "bob")
    upload = begin(alice)
    for act in (bob.get, bob.delete, lambda each: bob.append(each, offset=0)):
        with pytest.raises(UploadNotFound):
            act(upload.id)
    assert alice.of("bob").received_bytes() == bob.received_bytes() == 0
    assert send(bob.of("alice"), upload).complete


def test_only_unfinished_uploads_count(tmp_path):
    uploads = opened(tmp_path)
    first, second = begin(uploads), begin(uploads)
    with pytest.raises(TooManyUploads):
        begin(uploads)
    send(uploads, first, MODEL[:10])
    assert uploads.received_bytes() == 10
    append = uploads.append(first.id, offset=10)
    append.write(MODEL[10:])
    append.commit()
    assert uploads.received_bytes() == 0
    third = begin(uploads, expected_sha256=None)
    uploads.delete(third.id)
    expire(tmp_path, second)
    begin(uploads), begin(uploads)


def test_only_the_last_published_files_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "MOST_COMPLETE", 2)
    uploads = opened(tmp_path)
    done = []
    for _ in range(3):
        done.append(begin(uploads))
        send(uploads, done[-1])
    begin(uploads)
    with pytest.raises(UploadNotFound):
        uploads.get(done[0].id)
    assert all(uploads.get(upload.id).complete for upload in done[1:])
    assert CheckpointStore(tmp_path).file("m", "model.safetensors") is not None


def test_a_file_that_cannot_be_stored_is_refused_when_it_is_announced(tmp_path):
    uploads = opened(tmp_path)
    send(uploads, begin(uploads))
    with pytest.raises(ContentConflict):
        begin(uploads, size_bytes=len(MODEL) + 1)
    with pytest.raises(ContentConflict):
        begin(uploads, expected_sha256="0" * 64)
    begin(uploads, expected_sha256=CheckpointStore(tmp_path).file("m", "model.safetensors").sha256)


def test_an_expired_upload_is_swept_with_its_bytes_for_all_owners(tmp_path):
    uploads = opened(tmp_path)
    kept, old, damaged = (begin(uploads, most=9) for _ in range(3))
    alices = begin(opened(tmp_path, "alice", expiry_s=-1))
    expire(tmp_path, old)
    (tmp_path / "uploads" / damaged.id / "upload.json").write_text("{")
    (tmp_path / "uploads" / "Uhalf").mkdir()
    with pytest.raises(UploadNotFound):
        uploads.get(damaged.id)

    assert uploads.sweep() == 3
    assert not (tmp_path / "owners" / "alice" / "uploads" / alices.id).exists()
    assert {path.name for path in (tmp_path / "uploads").iterdir()} == {kept.id, "Uhalf"}
    os.utime(tmp_path / "uploads" / "Uhalf", (0, 0))
    assert uploads.sweep() == 1
    assert list((tmp_path / "trash").iterdir()) == []


def test_an_upload_that_is_being_written_is_not_swept(tmp_path):
    uploads = opened(tmp_path)
    upload = begin(uploads)
    append = uploads.append(upload.id, offset=0)
    expire(tmp_path, upload)
    assert uploads.sweep() == 0
    append.write(MODEL[:9])
    append.abort()
    assert uploads.get(upload.id).offset == 9
