"""state/jobs/scripts.py: scripts refuse to run on a server that may have lost data, until it is restored."""

import json

import pytest

from state.errors import RedisUnavailable
from state.jobs.scripts import MAX_RESTORES, REQUIRE_READY, RESTORING, Scripts, StateLost, StoredJob


@pytest.fixture
def scripts(redis_server):
    return Scripts(redis_server.client())


def nothing_to_restore(_token: str) -> None:
    pass


def test_a_new_server_runs_no_script_that_requires_records(scripts, redis_server):
    for name in REQUIRE_READY:
        with pytest.raises(StateLost):
            scripts.run(name)
    assert redis_server.client().keys() == []


@pytest.mark.parametrize("harm", ["wipe", "restart"])
def test_a_server_that_may_have_lost_data_must_be_restored(scripts, redis_server, harm):
    scripts.restore(nothing_to_restore)
    assert scripts.ready()
    getattr(redis_server, harm)()
    assert not scripts.ready()
    with pytest.raises(StateLost):
        scripts.run("counts")
    scripts.restore(nothing_to_restore)
    assert scripts.run("counts")


def test_a_ready_server_is_not_restored(scripts):
    scripts.restore(nothing_to_restore)
    scripts.restore(lambda _token: pytest.fail("nothing was lost"))


def test_a_server_that_loses_its_data_during_a_restore_is_restored_again(scripts, jobs, reach, redis_server):
    job_id = reach("succeeded")
    redis_server.wipe()
    scripts.restore(lambda _token: redis_server.wipe())
    assert not scripts.ready()
    assert [view.record.id for view in jobs.list().jobs] == [job_id]


class Late(Scripts):
    """Another process restores between the look at the server and the turn to restore it."""

    def ready(self) -> bool:
        found = super().ready()
        if not found:
            Scripts(self._client).restore(nothing_to_restore)
        return found


def test_a_server_that_another_process_has_just_restored_is_left_alone(redis_server):
    late = Late(redis_server.client())
    late.restore(lambda _token: pytest.fail("it was restored before this turn"))
    assert late.run("counts")
    assert redis_server.client().get(RESTORING) is None


def test_a_process_whose_turn_has_passed_brings_nothing_back(scripts, jobs, reach, redis_server):
    """Stopped for longer than a turn lasts, it has read a record that was deleted since."""
    job_id = reach("succeeded")
    redis_server.wipe()

    def restore_all(token: str) -> None:
        redis_server.client().delete(RESTORING)  # it lapses
        jobs.delete(job_id)
        old = StoredJob(job_id, "", json.dumps({"state": "queued", "version": "0", "created_us": "1"}))
        scripts.restore_records([old], token=token)

    scripts.restore(restore_all)
    assert jobs.list().jobs == ()
    assert scripts.ready()


def test_an_action_is_repeated_from_its_start_after_a_loss(scripts, redis_server):
    scripts.restore(nothing_to_restore)
    answers = []

    def act() -> int:
        answers.append(scripts.run("counts"))
        if len(answers) < 3:
            redis_server.wipe()
        scripts.run("counts")
        return len(answers)

    assert scripts.with_restore(act, nothing_to_restore) == 3


def test_a_server_that_loses_its_data_again_and_again_is_unavailable(scripts, redis_server):
    restores = []

    def restore_all(_token: str) -> None:
        restores.append(1)
        redis_server.wipe()

    with pytest.raises(RedisUnavailable):
        scripts.with_restore(lambda: scripts.run("counts"), restore_all)
    assert len(restores) == MAX_RESTORES
