"""A job store on the real server, and ways into every state."""

from collections.abc import Callable, Iterator

import pytest

from schemas.compression import CompressionSpec
from schemas.problem import Problem, problem
from schemas.report import Totals
from state.connection import redis_client
from state.jobs import JobStore
from state.records import NewJob


@pytest.fixture
def new() -> NewJob:
    return NewJob(checkpoint="my-model", spec=CompressionSpec(rank={"ratio": 0.5}))


@pytest.fixture
def summary() -> Totals:
    return Totals(
        parameters_before=100,
        parameters_after=60,
        parameter_savings=0.4,
        compression_factor=100 / 60,
        bytes_before=400,
        bytes_after=240,
        relative_error=0.125,
        layers_factored=3,
        layers_kept=1,
        seconds=1.5,
    )


@pytest.fixture
def why() -> Problem:
    return problem("not-finite", "The input holds NaN", 422, "Mend the weights and send the job again.")


@pytest.fixture
def make_store(redis_server, tmp_path) -> Iterator[Callable[..., JobStore]]:
    """Return what makes stores on the same server and directory, as several processes have them."""
    clients = []

    def make(**options) -> JobStore:
        clients.append(redis_client(redis_server.url))
        return JobStore(clients[-1], tmp_path, **options)

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def jobs(make_store) -> JobStore:
    return make_store()


@pytest.fixture
def reach(jobs, new, summary, why) -> Callable[[str], str]:
    """Return what makes a job and brings it into a state; an ended one was claimed under fence 1."""

    def bring(state: str) -> str:
        job_id = jobs.create(new).id
        if state == "queued":
            return job_id
        claim = jobs.claim(job_id, "worker")
        assert claim is not None
        assert claim.fence == 1
        if state == "succeeded":
            assert jobs.finish(job_id, 1, summary, "model.safetensors")
        elif state == "failed":
            assert jobs.fail(job_id, 1, why)
        elif state == "canceled":
            jobs.cancel(job_id)
        return job_id

    return bring
