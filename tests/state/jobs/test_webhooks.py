"""`state.jobs.webhooks`: what is left to deliver, and what was tried, survive everything but a deletion."""

import pytest

from schemas.webhook import Delivery
from state.data_dir import DataDir
from state.errors import FilesLocked
from state.jobs.webhooks import WebhookFiles

JOB = "J" + "a" * 32
DELIVERY = Delivery(message="m", attempt=1, at="2026-01-02T03:04:05Z", status=500, error="e", next_at=None)


@pytest.fixture
def paths(tmp_path):
    return DataDir(tmp_path)


def test_a_mark_stays_until_it_is_removed(paths):
    files = WebhookFiles(paths)
    assert files.marked() == []
    files.mark(JOB)
    files.mark(JOB)
    (paths.webhooks / "no job").touch()
    assert WebhookFiles(paths).marked() == [JOB]
    assert files.marked_for_s(JOB) < 60
    files.unmark(JOB)
    files.unmark(JOB)
    assert files.marked() == []
    assert files.marked_for_s(JOB) == 0


def test_deliveries_are_kept_with_the_job(paths):
    paths.job(JOB).mkdir(parents=True)
    files = WebhookFiles(paths)
    assert files.deliveries(JOB) == ()
    files.record(JOB, [DELIVERY])
    assert WebhookFiles(paths).deliveries(JOB) == (DELIVERY,)


def test_a_deleted_job_does_not_come_back(paths):
    WebhookFiles(paths).record(JOB, [DELIVERY])
    assert not paths.job(JOB).exists()


DAMAGED = [b"", b"[]", b"{}", b'{"deliveries": 5}', b'{"deliveries": [{}]}', b"\xff"]


@pytest.mark.parametrize("content", DAMAGED)
def test_of_a_damaged_file_nothing_is_known(paths, content):
    paths.job(JOB).mkdir(parents=True)
    paths.deliveries(JOB).write_bytes(content)
    assert WebhookFiles(paths).deliveries(JOB) == ()


def test_only_one_process_delivers(paths):
    with WebhookFiles(paths).lock(), pytest.raises(FilesLocked), WebhookFiles(paths).lock():
        pass
