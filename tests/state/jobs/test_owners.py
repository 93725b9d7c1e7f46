"""Owners of checkpoints, jobs and cached decompositions: what one has, no other finds, changes or notices."""

import hashlib
from dataclasses import replace

import pytest

from schemas.spec import CompressionSpec
from state.cache.store import DecompositionCache
from state.data_dir import OWNER, DataDir
from state.errors import CheckpointGone, CheckpointInUse, CheckpointNotFound, JobNotFound
from state.jobs.records import Idempotency, NewJob
from tests.service.files import checkpoint_bytes
from tests.state.decompositions import KEY, example, read

OWNERS = ("", "alice", "bob")
SPEC = CompressionSpec(rank={"ratio": 0.5}).document()


def store(checkpoints, checkpoint_id, content):
    with checkpoints.receive(
        checkpoint_id, "model.safetensors", content_bytes=None, limit_bytes=1 << 20
    ) as upload:
        upload.write(content)
        return upload.commit()


@pytest.fixture
def contents(checkpoints):
    """Store other bytes under the same id for each owner."""
    contents = {owner: checkpoint_bytes({f"{owner}.weight": (2, 3)}) for owner in OWNERS}
    for owner, content in contents.items():
        assert store(checkpoints.of(owner), "m", content).created
    return contents


def test_owners_use_the_same_id_without_noticing_one_another(checkpoints, contents):
    for owner, content in contents.items():
        (file,) = checkpoints.of(owner).get("m").files
        assert file.sha256 == hashlib.sha256(content).hexdigest()
    checkpoints.of("alice").delete("m")
    with pytest.raises(CheckpointNotFound):
        checkpoints.of("alice").get("m")
    assert checkpoints.of("").exists("m")
    assert checkpoints.of("bob").exists("m")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a@b", "-a", "a b", "a" * 65, "a\n"])
def test_what_could_leave_its_folder_is_no_owner(name):
    assert OWNER.fullmatch(name) is None


def new_job(checkpoints, owner):
    return NewJob(checkpoint="m", spec=SPEC, files=checkpoints.of(owner).get("m").files)


@pytest.fixture
def made(jobs, checkpoints, contents):
    return {owner: jobs.of(owner).create(new_job(checkpoints, owner)) for owner in contents}


def test_a_job_is_found_and_changed_by_its_owner_alone(jobs, made):
    for owner, record in made.items():
        for other in set(OWNERS) - {owner}:
            for call in (jobs.of(other).get, jobs.of(other).cancel, jobs.of(other).delete):
                with pytest.raises(JobNotFound):
                    call(record.id)
        assert jobs.of(owner).get(record.id) == record
        assert jobs.get(record.id).state == "queued"


def listed(jobs, state=None):
    return [view.record.id for view in jobs.list(state).jobs]


def test_a_list_shows_only_ones_own(jobs, made, redis_server):
    for _ in range(2):
        for owner, record in made.items():
            assert listed(jobs.of(owner)) == listed(jobs.of(owner), "queued") == [record.id]
            assert listed(jobs.of(owner), "running") == []
        assert len(listed(jobs)) == len(made)
        redis_server.wipe()


def test_a_job_whose_record_is_damaged_stays_its_owners(jobs, made, redis_server, tmp_path):
    record = made["alice"]
    DataDir(tmp_path).record(record.id).write_text("{")
    redis_server.wipe()
    assert listed(jobs.of("alice")) == [record.id]
    assert not jobs.of("alice").get(record.id).readable
    for other in ("", "bob"):
        assert listed(jobs.of(other)) == [made[other].id]
        with pytest.raises(JobNotFound):
            jobs.of(other).get(record.id)


def test_lists_follow_a_job_to_its_end_and_away(jobs, made):
    alice = jobs.of("alice")
    job_id = made["alice"].id
    claim = jobs.claim(job_id, "t")
    assert listed(alice, "running") == [job_id]
    assert claim.record.owner == "alice"
    alice.cancel(job_id)
    assert listed(alice, "running") == []
    assert listed(alice, "canceled") == [job_id]
    alice.delete(job_id)
    assert listed(alice) == listed(alice, "canceled") == []


def test_jobs_of_a_release_without_owners_are_listed_once_the_scripts_are_new(jobs, made, redis_server):
    client = redis_server.client()
    for key in client.scan_iter("eckart:jobs:*@"):
        client.delete(key)
    client.script_flush()
    assert listed(jobs.of("")) == listed(jobs.of(""), "queued") == [made[""].id]


def test_only_an_owners_own_job_keeps_a_checkpoint(jobs, made, checkpoints):
    jobs.of("alice").cancel(made["alice"].id)
    with jobs.of("alice").locked_for_deletion("m"):
        assert jobs.of("bob").create(new_job(checkpoints, "bob")).owner == "bob"
        with pytest.raises(CheckpointGone):
            jobs.of("alice").create(new_job(checkpoints, "alice"))
    for owner in ("", "bob"):
        with pytest.raises(CheckpointInUse), jobs.of(owner).locked_for_deletion("m"):
            pass


def test_the_files_that_a_job_needs_must_be_its_owners(jobs, made, checkpoints):
    with pytest.raises(CheckpointGone):
        jobs.of("alice").create(new_job(checkpoints, "bob"))


def test_an_idempotency_key_is_its_owners(jobs, made, checkpoints):
    key = Idempotency(key="k", fingerprint="f")
    first = {o: jobs.of(o).create(new_job(checkpoints, o), idempotency=key).id for o in made}
    again = {o: jobs.of(o).create(new_job(checkpoints, o), idempotency=key).id for o in made}
    assert first == again
    assert len(set(first.values())) == len(made)


def test_a_cached_decomposition_is_found_by_its_owner_alone(tmp_path):
    head, basis = example()
    cache = DecompositionCache.shared(tmp_path, limit_bytes=1 << 30)
    assert cache.of("alice").put(KEY, head, basis, sources=())
    for other in ("", "bob"):
        assert cache.of(other).open(KEY) is None
        assert cache.of(other).spectra([KEY]) == {}
    assert read(cache.of("alice")) == (head, bytes(basis))


def test_a_cached_decomposition_goes_with_its_owners_file(tmp_path, checkpoints):
    content = checkpoint_bytes()
    key = replace(KEY, file_sha256=hashlib.sha256(content).hexdigest())
    head, basis = example(key)
    cache = DecompositionCache.shared(tmp_path, limit_bytes=1 << 30)
    for owner in ("alice", "bob"):
        store(checkpoints.of(owner), "m", content)
        assert cache.of(owner).put(key, head, basis, sources=())
    checkpoints.of("alice").delete("m")
    assert cache.of("alice").open(key) is None
    assert read(cache.of("bob"), key) is not None


def test_the_folders_of_owners_lie_below_the_data_directory(tmp_path):
    paths = DataDir(tmp_path, "alice")
    assert paths.checkpoint("m") == tmp_path / "owners" / "alice" / "checkpoints" / "m"
    assert paths.job("J1") == DataDir(tmp_path).job("J1")
