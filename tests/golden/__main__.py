"""Write what this release keeps, as files for the tests of later releases: `python -m tests.golden`."""

import json
import shutil
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

from schemas.format.files import open_checkpoint
from schemas.spec import CompressionSpec
from state.checkpoints.store import CheckpointStore
from state.data_dir import DataDir
from state.jobs.records import Idempotency, NewJob
from state.jobs.store import JobStore
from state.redis import redis_client
from tests.conftest import RedisServer
from worker.attempt import run_attempt
from worker.pipeline import CompressionRequest, compress
from worker.settings import Settings

SPEC = CompressionSpec.model_validate({"rank": {"ratio": 0.5}, "overrides": [{"match": "b", "rank": 2}]})
HERE = Path(__file__).parent


def main() -> None:
    target = HERE / version("eckart")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "model.safetensors"
        torch.manual_seed(0)
        save_file({f"{name}.weight": torch.randn(12, 8) for name in "ab"}, source)
        server = RedisServer(Path(scratch))
        server.start()
        try:
            _job(server, Path(scratch) / "data", source, target)
        finally:
            server.kill()
        _spool(source, target)


def _job(server: RedisServer, data_dir: Path, source: Path, target: Path) -> None:
    jobs, checkpoints, paths = (
        JobStore(redis_client(server.url), data_dir),
        CheckpointStore(data_dir),
        DataDir(data_dir),
    )
    with checkpoints.receive("m", source.name, content_bytes=None, limit_bytes=1 << 20) as upload:
        upload.write(source.read_bytes())
        upload.commit()
    new = NewJob(
        checkpoint="m", spec=SPEC.document(), files=checkpoints.get("m").files, warnings=("A warning.",)
    )
    job_id = jobs.create(new, idempotency=Idempotency(key="k", fingerprint="f")).id
    run_attempt(job_id, jobs, Settings(data_dir=data_dir), worker="w", stopping=threading.Event())
    record = jobs.get(job_id)
    assert record.state == "succeeded", record.error
    fields = server.client().hgetall(f"eckart:job:{job_id}")
    (target / "hash.json").write_text(json.dumps(fields, indent=1) + "\n")
    shutil.copy(paths.record(job_id), target)
    shutil.copytree(paths.result(job_id, 1), target / "result")
    shutil.copy(paths.manifest("m"), target)
    shutil.copytree(paths.decompositions, target / "decompositions", ignore=shutil.ignore_patterns(".*"))
    server.close_clients()


def _spool(source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        request = CompressionRequest(
            open_checkpoint(source), (), SPEC, Path(scratch) / "spool", Path(scratch) / "result"
        )
        compress(request, device=torch.device("cpu"), observe=lambda _progress: None)
        (folder,) = (Path(scratch) / "spool").iterdir()
        shutil.copytree(folder, target / "spool")


main()
