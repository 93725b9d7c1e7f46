"""`maintenance.reconciliation`: what nobody owns goes, what was lost returns, what is under way stays."""

import os
import subprocess
import sys
import time

import pytest

from schemas.problem import ProblemKind
from service.app import open_services
from service.maintenance.reconciliation import reconcile
from service.standalone.__main__ import redis_socket
from state.checkpoints.store import new_checkpoint_id
from state.checkpoints.timeline import Timeline, stored_us
from state.data_dir import DataDir
from state.files import locked
from state.jobs.records import new_job_id, new_token
from tests.service.files import checkpoint_bytes
from tests.service.running import until

MODEL = checkpoint_bytes()
FILES = {"model.safetensors": MODEL}
WHY = ProblemKind.INVALID_SPEC.problem("The input holds NaN.")


@pytest.fixture
def order(start, tmp_path):
    """Return a service whose first reconciliation is over, and the stores that it uses."""
    # Stale entries of holders are what it corrects last.
    stale = tmp_path / "holders" / "ab"
    stale.mkdir(parents=True)
    (stale / "gone").touch()
    running = start(reconcile_s=10_000)
    until(lambda: not stale.exists())
    services = open_services(running.settings)
    yield Order(running, services)
    services.close()


class Order:
    def __init__(self, running, services):
        self.service, self.services = running, services
        self.paths = DataDir(running.data_dir)

    def run(self):
        return dict(reconcile(self.services))

    def stray_job(self, *, age_s):
        """Make a directory as the attempt of a deleted job did."""
        folder = self.paths.job(new_job_id())
        (folder / "spool" / "work").mkdir(parents=True)
        (folder / "spool" / "work" / "000000.segment").write_bytes(b"a layer")
        return aged(folder, age_s)

    def one_shot(self, *, age_s):
        """Store the files of a request whose job was not created."""
        name = new_checkpoint_id()
        upload = self.service.checkpoints.receive(
            name, "model.safetensors", content_bytes=len(MODEL), limit_bytes=len(MODEL)
        )
        with upload:
            upload.write(MODEL)
            upload.commit()
        aged(self.paths.checkpoint(name), age_s)
        return name

    def stored(self, name):
        return self.service.http.get(f"/v1/checkpoints/{name}").status_code == 200


def aged(path, age_s):
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_where_all_is_known_nothing_is_done(order):
    order.service.submit(order.service.stored(MODEL))
    job = order.service.submit_files(FILES).json()
    order.service.finish(job["id"], FILES)
    aged(order.paths.checkpoint(job["checkpoint"]), 10**8)
    aged(order.paths.job(job["id"]), 10**8)

    assert order.run() == {}
    assert order.stored(job["checkpoint"])


@pytest.mark.parametrize(("age_s", "goes"), [(7200, True), (60, False)])
def test_directories_of_no_job_go_once_they_are_old(order, age_s, goes):
    folder = order.stray_job(age_s=age_s)
    (order.paths.jobs / "of an operator").mkdir()

    assert order.run() == ({"job-directory": 1} if goes else {})
    assert folder.exists() != goes
    assert (order.paths.jobs / "of an operator").exists()


def test_a_directory_that_is_locked_stays(order):
    folder = order.stray_job(age_s=7200)
    with locked(order.paths.lock("job", folder.name)):
        assert order.run() == {}
    assert folder.exists()


def test_a_job_on_disk_that_redis_does_not_list_is_put_back(order, redis_server):
    job = order.service.submit_files(FILES).json()["id"]
    order.service.finish(job, FILES)
    client = redis_server.client()
    for key in ("jobs:all", "jobs:all@", "jobs:succeeded", "jobs:succeeded@", "ended"):
        client.zrem(f"eckart:{key}", job)
    client.delete(f"eckart:job:{job}")
    assert order.service.http.get("/v1/jobs").json()["jobs"] == []

    assert order.run() == {"restored-job": 1}
    assert [each["id"] for each in order.service.http.get("/v1/jobs").json()["jobs"]] == [job]
    assert client.zscore("eckart:ended", job) is not None


@pytest.mark.parametrize(("age_s", "goes"), [(2 * 86400, True), (3600, False)])
def test_a_checkpoint_whose_job_was_never_created_goes_after_a_day(order, age_s, goes):
    name = order.one_shot(age_s=age_s)
    mine = order.service.stored(MODEL)
    aged(order.paths.checkpoint(mine), 10**8)

    assert order.run() == ({"checkpoint": 1} if goes else {})
    assert order.stored(name) != goes
    assert order.stored(mine)


@pytest.mark.parametrize("state", ["queued", "running", "failed"])
def test_a_checkpoint_that_any_job_names_stays(order, state):
    name = order.one_shot(age_s=10**6)
    job = order.service.submit(name).json()["id"]
    if state != "queued":
        claim = order.service.jobs.claim(job, new_token("test"))
        if state == "failed":
            order.service.jobs.fail(job, claim.fence, WHY)

    assert order.run() == {}
    assert order.stored(name)


def test_while_a_job_cannot_be_read_no_checkpoint_goes(order, redis_server):
    name = order.one_shot(age_s=10**6)
    job = order.service.submit_files(FILES).json()["id"]
    order.paths.record(job).write_text("nonsense")
    redis_server.wipe()

    assert order.run() == {}
    assert order.stored(name)


def test_a_file_that_its_manifest_does_not_name_goes_once_it_is_old(order):
    name = order.service.stored(MODEL)
    folder = order.paths.checkpoint(name)
    for stray, age_s in (
        ("old.safetensors", 10**6),
        (".old.safetensors.header", 10**6),
        ("new.safetensors", 60),
    ):
        (folder / stray).write_bytes(b"some bytes")
        aged(folder / stray, age_s)
    empty = order.paths.checkpoint("left")
    empty.mkdir()
    aged(empty, 10**6)
    for path in folder.iterdir():
        if path.name in {"model.safetensors", ".model.safetensors.header", ".manifest.json"}:
            aged(path, 10**6)

    # The manifest's time was changed, too.
    assert order.run() == {"uncounted-file": 2, "listed-checkpoint": 1}
    assert sorted(path.name for path in folder.iterdir()) == [
        ".manifest.json",
        ".model.safetensors.header",
        "model.safetensors",
        "new.safetensors",
    ]
    assert order.stored(name)


def test_a_list_of_checkpoints_is_put_right(order):
    names = [order.service.stored(MODEL) for _ in range(3)]
    timeline = Timeline(order.paths)
    timeline.remove(stored_us(order.paths, names[0]), names[0])
    timeline.add(1, names[2])
    timeline.add(2, "gone")

    assert order.run() == {"listed-checkpoint": 3}
    listed = order.service.http.get("/v1/checkpoints").json()["checkpoints"]
    assert [each["id"] for each in listed] == names[::-1]
    assert order.run() == {}


def test_it_runs_when_the_service_starts_and_counts_what_it_does(order, start):
    order.stray_job(age_s=7200)
    second = start()

    until(lambda: 'eckart_reconciled_total{what="job-directory"} 1.0' in second.http.get("/metrics").text)


def test_the_command_says_what_it_did(order):
    order.stray_job(age_s=7200)
    order.one_shot(age_s=10**6)
    settings = order.service.settings
    done = reconcile_by_command(settings.data_dir, ECKART_REDIS_URL=str(settings.redis_url))

    assert done.returncode == 0, done.stderr
    assert done.stdout == "put in order: 1 checkpoint\nput in order: 1 job-directory\n"


def reconcile_by_command(data_dir, **variables):
    environment = os.environ | {"ECKART_DATA_DIR": str(data_dir)} | variables
    command = [sys.executable, "-m", "service", "reconcile"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_finds_the_server_of_eckart_serve_or_says_that_none_runs(redis_server):
    data_dir = redis_server.directory / "data"
    stray = DataDir(data_dir).job(new_job_id())
    stray.mkdir(parents=True)
    os.utime(stray, (0, 0))
    none = reconcile_by_command(data_dir)
    assert (none.returncode, stray.exists()) == (2, True)
    assert f"no `eckart serve` of this user runs on {data_dir}" in none.stderr

    DataDir(data_dir).run.mkdir()
    with redis_socket(DataDir(data_dir).run) as socket:
        socket.symlink_to(redis_server.socket)
        done = reconcile_by_command(data_dir)
        again = reconcile_by_command(data_dir)
    assert (done.returncode, done.stdout) == (0, "put in order: 1 job-directory\n"), done.stderr
    assert again.stdout == "all was in order\n"
