"""A job store on the real server, and ways into every state."""

import json
from collections.abc import Callable, Iterator

import pytest

from schemas.checkpoint import FileInfo
from schemas.problem import Problem, ProblemKind
from schemas.report import Totals
from schemas.spec import CompressionSpec
from state.cache.store import DecompositionCache
from state.checkpoints.store import CheckpointStore
from state.errors import CheckpointInUse
from state.jobs.records import JobRecord, NewJob, new_token
from state.jobs.store import JobStore
from state.redis import redis_client
from state.uploads.upload import StoredFile


@pytest.fixture
def new() -> NewJob:
    return NewJob(checkpoint="my-model", spec=CompressionSpec(rank={"ratio": 0.5}).document())


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
    return ProblemKind.WORKER_TROUBLE.problem("All attempts failed. Fix the cause and resume the job.")


@pytest.fixture
def make_store(redis_server, tmp_path) -> Iterator[Callable[..., JobStore]]:
    """Return what creates stores on the same server and directory, as several processes have them."""
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
    """Return what creates a job in a given state; an ended one was claimed under fence 1."""

    def bring(state: str) -> str:
        job_id = jobs.create(new).id
        if state == "queued":
            return job_id
        claim = jobs.claim(job_id, new_token("worker"))
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


@pytest.fixture
def in_use(jobs) -> Callable[[], bool]:
    """Return what tests whether a job needs the checkpoint, which then cannot be deleted."""

    def is_in_use() -> bool:
        try:
            with jobs.locked_for_deletion("my-model"):
                return False
        except CheckpointInUse:
            return True

    return is_in_use


@pytest.fixture
def on_disk(tmp_path) -> Callable[[str], JobRecord]:
    """Return what reads job.json."""

    def read(job_id: str) -> JobRecord:
        return JobRecord.model_validate_json((tmp_path / "jobs" / job_id / "job.json").read_bytes())

    return read


@pytest.fixture
def safetensors() -> Callable[..., bytes]:
    """Return what makes a file of zeros with the given tensors of float32."""

    def make(**shapes: tuple[int, ...]) -> bytes:
        entries, offset = {}, 0
        for name, (rows, columns) in (shapes or {"w.weight": (4, 4)}).items():
            end = offset + 4 * rows * columns
            entries[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [offset, end]}
            offset = end
        header = json.dumps(entries).encode()
        return len(header).to_bytes(8, "little") + header + bytes(offset)

    return make


@pytest.fixture
def checkpoints(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


@pytest.fixture
def send(checkpoints) -> Callable[..., StoredFile]:
    """Return what uploads a body in blocks."""

    def put(checkpoint_id: str, name: str, body: bytes, *, block_bytes: int = 1 << 20) -> StoredFile:
        upload = checkpoints.receive(checkpoint_id, name, content_bytes=len(body), limit_bytes=1 << 30)
        with upload:
            for start in range(0, len(body), block_bytes):
                upload.write(body[start : start + block_bytes])
            return upload.commit()

    return put


@pytest.fixture
def store_file(send, safetensors) -> Callable[[str, str], FileInfo]:
    """Return what stores a small file."""

    def store(checkpoint_id: str, name: str) -> FileInfo:
        return send(checkpoint_id, name, safetensors()).info

    return store


@pytest.fixture
def left(tmp_path):
    """Return what lists every file below the data directory that is no lock and notes no time."""

    def files() -> set[str]:
        paths = (path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
        return {str(path) for path in paths if path.parts[0] not in {"locks", "timeline"}}

    return files


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    return path


@pytest.fixture
def make_cache(tmp_path):
    """Return what creates caches on the same folder, as several processes have them."""

    def create(limit_bytes=1 << 30):
        return DecompositionCache.shared(tmp_path, limit_bytes=limit_bytes)

    return create


@pytest.fixture
def cache(make_cache):
    return make_cache()
