"""The kill matrix: a short run of it breaks nothing, and what is broken would be seen."""

import io
import json
import os
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from tools.chaos.audit import leftovers
from tools.chaos.kills import draw, fill
from tools.chaos.ledger import DOUBLED, LOST, Ledger
from tools.chaos.moments import JOB_MOMENTS, await_moment
from tools.chaos.reader import digest_of
from tools.chaos.table import Table
from tools.chaos.trees import SupervisedTree

ROOT = Path(__file__).parents[2]
# Few, since a killed worker takes seconds to start; `make chaos` runs more, in more services at a time.
ROUNDS = 6
# It draws six kinds of kills, one of which makes a process start that imports torch.
SEED = 860
BODY = b"the weights"
DIGEST = sha256(BODY).hexdigest()


def test_a_short_run_loses_doubles_and_half_reads_nothing(tmp_path):
    # Real processes are killed and start again, so this takes longer than a test should.
    options = [
        "--rounds",
        str(ROUNDS),
        "--seed",
        str(SEED),
        "--trees",
        "1",
        "--arrangement",
        "supervised",
        "--slack",
        "8",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "tools.chaos", *options, "--dir", "/tmp", "--keep-logs", tmp_path],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert f"{ROUNDS} rounds in" in run.stdout


def drawn(seed):
    kills = [draw(f"{seed} {i}", SupervisedTree.victims, lease_s=60, disk=True) for i in range(300)]
    return kills, {kill.victim for kill in kills}, {kill.means for kill in kills}


def test_the_same_seed_draws_the_same_kills_and_every_kind_of_them():
    kills, victims, means = drawn(1)
    assert kills == drawn(1)[0] != drawn(2)[0]
    assert victims == {*SupervisedTree.victims, "redis data", "disk"}
    assert means == {"SIGKILL", "SIGTERM", "SIGSTOP", "wiped", "emptied", "set back", "full"}


def tar_of(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("model.safetensors")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def report_of(digest):
    return json.dumps({"output": {"files": [{"name": "model.safetensors", "sha256": digest}]}}).encode()


@pytest.mark.parametrize(
    ("how", "whole", "half"),
    [
        ("checkpoint", BODY, BODY[:-1]),
        ("archive", tar_of(BODY), tar_of(BODY)[:515]),
        ("archive", tar_of(BODY), tar_of(BODY[:-1])),
        ("report", report_of(DIGEST), report_of(DIGEST)[:-3]),
        ("report", report_of(DIGEST), report_of("0" * 64)),
    ],
)
def test_a_half_of_a_result_is_told_from_the_whole(how, whole, half):
    assert digest_of(how, whole) == DIGEST
    assert digest_of(how, half) != DIGEST


@pytest.fixture
def ledger():
    return Ledger("tree", seed=1)


def faults(ledger):
    return [what for _, what in ledger.faults.elements()]


def test_a_job_that_ends_twice_is_a_fault_but_not_one_that_was_resumed(ledger):
    promise = ledger.promise("J1", DIGEST)
    ledger.saw_end(promise, "running", resumed=0, ended_before=None)
    ledger.saw_end(promise, "failed", resumed=0, ended_before=None)
    ledger.resume(promise)
    ledger.saw_end(promise, "failed", resumed=0, ended_before="succeeded")  # asked before it was resumed
    for state in ("failed", "queued"):  # the request to resume is on its way
        ledger.saw_end(promise, state, resumed=1, ended_before=promise.ended)
    ledger.resume(promise)
    ledger.saw_end(promise, "queued", resumed=2, ended_before=promise.ended)
    ledger.saw_end(promise, "succeeded", resumed=2, ended_before=None)
    assert (faults(ledger), promise.ended) == ([], "succeeded")
    ledger.saw_end(promise, "running", resumed=2, ended_before="succeeded")
    assert faults(ledger) == [DOUBLED]


def test_a_job_that_nobody_canceled_must_not_be_canceled(ledger):
    asked, other = ledger.promise("J1", DIGEST), ledger.promise("J2", DIGEST)
    asked.cancel_asked = True
    for promise in (asked, other):
        ledger.saw_end(promise, "canceled", resumed=0, ended_before=None)
    assert faults(ledger) == [LOST]
    assert "J2" in ledger.told[0]


def test_a_fault_names_the_seed_and_the_round_and_stands_in_the_table(ledger):
    ledger.round, ledger.kind = 7, "api SIGKILL"
    ledger.fault(LOST, "a job is gone")
    assert ledger.told == ["lost: seed 1, tree, round 7 (api SIGKILL): a job is gone"]
    table = Table("title")
    table.add_ledger(ledger)
    table.add_round("api SIGKILL", 1.0)
    table.add_round("api SIGKILL", 4.0)
    assert "| api SIGKILL | 2 | 1 | 0 | 0 | 0 | 0 | 0 | 2.5 | 4.0 |" in str(table)


@pytest.mark.parametrize(
    "left",
    [
        "parts/x.part",
        "trash/y",
        "jobs/J1/result-2",
        "jobs/J1/result-1.part",
        "jobs/J1/attempt-1.lock",
        "jobs/J1/spool",
        "jobs/J2/result-1",
        "jobs/J3",
    ],
)
def test_what_nobody_owns_is_found(tmp_path, left):
    listed = {"J1": {"state": "succeeded"}, "J2": {"state": "canceled"}}
    for owned in ("jobs/J1/result-1", "jobs/J2", "parts"):
        (tmp_path / owned).mkdir(parents=True)
    for job_id in listed:
        (tmp_path / "jobs" / job_id / "job.json").touch()
    assert leftovers(tmp_path, listed) == []
    (tmp_path / left).mkdir(parents=True)
    found = [str(path.relative_to(tmp_path)) for path in leftovers(tmp_path, listed)]
    # Of two results either may be the one too many.
    assert found in ([left], ["jobs/J1/result-1"])


@pytest.mark.parametrize("moment", JOB_MOMENTS)
def test_a_moment_is_one_that_a_job_comes_to_and_not_where_it_was(tmp_path, ledger, moment, monkeypatch):
    def bring(job_id):
        job = tmp_path / "jobs" / job_id
        (job / "spool" / "f").mkdir(parents=True)
        (job / "job.json").write_text('{"state": "succeeded"}')
        (job / "spool" / "f" / "0.segment").write_bytes(bytes(600_000))
        (job / "attempt-1.lock").touch()
        (job / "result-1").mkdir()
        (job / "result-2.part").mkdir()

    monkeypatch.setattr("tools.chaos.moments.LIMIT_S", 0.05)
    bring("J1")
    assert not await_moment(moment, tmp_path, ledger, delay_s=0)
    monkeypatch.setattr("tools.chaos.moments._until", lambda condition: (bring("J2"), condition())[1])
    assert await_moment(moment, tmp_path, ledger, delay_s=0)


def test_a_disk_is_filled_until_it_is_full():
    written = []

    def write():
        written.append(b"x")
        if len(written) == 3:
            full.write(b"x")

    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        fill(write)
    assert len(written) == 3
