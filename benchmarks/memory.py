"""The memory that the worker and the API need for a checkpoint of 3 GB."""

import os
import time
from pathlib import Path

from benchmarks.checkpoints import blocks_for, write_llama
from benchmarks.options import Options
from benchmarks.overhead import run_seconds
from benchmarks.processes import Watch, tree
from benchmarks.sender import Upload, send
from benchmarks.standalone import Service, running
from benchmarks.table import mib, show
from eckart import Client
from eckart.types import Job
from schemas.spec import CompressionSpec

SET_BYTES = 3_000_000_000
SPEC = CompressionSpec.model_validate({"method": "svd", "rank": {"ratio": 0.3}})
ID = "llama"
TELL_S = 10.0


def ask(options: Options) -> None:
    """Write the checkpoint, upload it and run one job; sample the anonymous memory meanwhile."""
    begun = time.perf_counter()
    blocks = blocks_for(SET_BYTES * options.scale)
    index = write_llama(options.place / "llama", blocks=blocks)
    files = sorted(index.parent.iterdir())
    nbytes = sum(file.stat().st_size for file in files)
    made_s = time.perf_counter() - begun
    print(f"{blocks} blocks, {nbytes:,} bytes in {len(files)} files, made in {made_s:.0f} s")
    os.sync()
    with running(options.place, threads=options.threads) as service:
        upload_s, api = _upload(service, files)
        print(f"uploaded in {upload_s:.1f} s, the API grew by {mib(api.growth_bytes)}")
        job, worker = _run(service)
    _show(job, worker, api, upload_s=upload_s, nbytes=nbytes)


def _upload(service: Service, files: list[Path]) -> tuple[float, Watch]:
    with Watch(lambda: [service.pid("api")]) as watch:
        uploads = [Upload(file, f"/v1/checkpoints/{ID}/{file.name}") for file in files]
        spent_s = sum(send(upload, service.port)[0] for upload in uploads)
    return spent_s, watch


def _run(service: Service) -> tuple[Job, Watch]:
    with Client(service.url) as client, Watch(lambda: tree(service.pid("worker"))) as watch:
        job = client.submit(ID, SPEC)
        while not job.has_ended:
            time.sleep(TELL_S if job.progress.layers_done else 1.0)
            job = client.job(job.id)
            done = f"{job.progress.layers_done}/{job.progress.layers_total}"
            print(f"  {job.state}: layers {done}, peak so far {mib(watch.peak_bytes)}")
    if job.state != "succeeded":
        raise RuntimeError(f"the job {job.state}: {job.error}")
    return job, watch


def _show(job: Job, worker: Watch, api: Watch, *, upload_s: float, nbytes: int) -> None:
    largest = max(worker.last.values(), key=lambda facts: facts["VmHWM"])
    rows = [
        ("worker's processes before the job", mib(worker.first_bytes), ""),
        ("worker's processes, peak", mib(worker.peak_bytes), "1228.8 MiB"),
        ("API before the upload", mib(api.first_bytes), ""),
        ("API, growth during the upload", mib(api.growth_bytes), "64.0 MiB"),
    ]
    show(f"Anonymous memory for {nbytes / 1e9:.2f} GB", ("what", "measured", "target at most"), rows)
    print(f"{worker.samples} samples of {len(worker.last)} processes of the worker.")
    print(
        f"For comparison, the kernel's peak of the largest process: {mib(largest['VmHWM'])} resident, "
        f"of which at the end {mib(largest['RssFile'])} are pages of files."
    )
    assert job.summary is not None
    print(
        f"Upload {upload_s:.1f} s ({nbytes / 2**20 / upload_s:.0f} MiB/s), job {run_seconds(job):.1f} s, "
        f"{job.summary.layers_factored} layers factored, {job.summary.bytes_after:,} bytes left."
    )
