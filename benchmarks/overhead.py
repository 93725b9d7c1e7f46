"""The time of a job compared with a bare loop that reads, factors and writes the same layers."""

import multiprocessing
import os
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median

from benchmarks.checkpoints import blocks_for, minilm, write_llama
from benchmarks.loops import Phases, bare_loop, pipeline
from benchmarks.options import Options
from benchmarks.standalone import running
from benchmarks.table import seconds, show
from eckart import Client
from eckart.types import Job
from schemas.spec import CompressionSpec

SPEC = CompressionSpec.model_validate({"method": "svd", "rank": {"ratio": 0.5}})
LLAMA_BYTES = 330_000_000  # the embedding and two blocks
# The worker replaces its process after 8 jobs, and a new one would be cold. One round is for warming up.
MOST_ROUNDS = 7
MOST_LONG_ROUNDS = 3


@dataclass(slots=True)
class Times:
    """All rounds of one input, in seconds; the bare loop's by its number of threads."""

    bare: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    job: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    phases: list[Phases] = field(default_factory=list)


def ask(options: Options) -> None:
    """Measure both inputs, each with a fresh service."""
    # Threads that wait for each other make small layers erratic, so a bare loop on one thread runs too.
    counts = sorted({options.threads, 1}, reverse=True)
    _compare("MiniLM, float32", minilm(), options, counts, rounds=min(options.rounds, MOST_ROUNDS))
    index = write_llama(options.place / "llama", blocks=blocks_for(LLAMA_BYTES * options.scale))
    title = "Llama-shaped, bfloat16, embedding and blocks of 2048/5632"
    _compare(title, index, options, [options.threads], rounds=min(options.rounds, MOST_LONG_ROUNDS))


def _compare(title: str, source: Path, options: Options, counts: list[int], *, rounds: int) -> None:
    times, spawn = Times(), multiprocessing.get_context("spawn")
    place = options.place / source.parent.name
    place.mkdir(exist_ok=True)
    with (
        ProcessPoolExecutor(1, mp_context=spawn) as peer,
        # No round may find the decompositions of the one before.
        running(place, threads=options.threads, cache=False) as service,
        Client(service.url) as client,
    ):
        checkpoint = client.upload(source)
        _take_round(Times(), source, options, counts, peer, client, checkpoint)  # cold, and not counted
        for _ in range(rounds):
            _take_round(times, source, options, counts, peer, client, checkpoint)
            bare = ", ".join(f"{spent[-1]:.2f} bare on {count}" for count, spent in times.bare.items())
            print(f"{bare}, {times.phases[-1].total:.2f} pipeline, {times.job[-1]:.2f} job")
    _show(title, times)


def _take_round(
    times: Times,
    source: Path,
    options: Options,
    counts: list[int],
    peer: ProcessPoolExecutor,
    client: Client,
    checkpoint: str,
) -> None:
    target = options.place / "peer"
    for count in counts:
        os.sync()
        times.bare[count].append(peer.submit(bare_loop, source, target, SPEC, threads=count).result())
    os.sync()
    job_s, wall_s = _run_job(client, checkpoint)
    times.job.append(job_s)
    times.wall.append(wall_s)
    os.sync()
    times.phases.append(peer.submit(pipeline, source, target, SPEC, threads=options.threads).result())


def _run_job(client: Client, checkpoint: str) -> tuple[float, float]:
    begun = time.perf_counter()
    job = client.wait(client.submit(checkpoint, SPEC).id)
    wall_s = time.perf_counter() - begun
    client.delete(job.id)
    return run_seconds(job), wall_s


def run_seconds(job: Job) -> float:
    """Return the time from claim to finish."""
    assert job.started_at is not None
    assert job.finished_at is not None
    spent = datetime.fromisoformat(job.finished_at) - datetime.fromisoformat(job.started_at)
    return spent.total_seconds()


def _show(title: str, times: Times) -> None:
    bare = {f"bare loop, threads: {count}": spent for count, spent in times.bare.items()}
    peer_s = min(map(median, bare.values()))
    ways = bare | {
        "pipeline alone": [phases.total for phases in times.phases],
        "job, claim to finish": times.job,
        "job, as the client waits": times.wall,
    }
    rows = [
        (name, f"{median(spent):.2f}", f"{median(spent) / peer_s:.3f}", seconds(spent))
        for name, spent in ways.items()
    ]
    ask_for = "claim to finish at most 1.15 of the faster bare loop"
    show(f"{title}; target: {ask_for}", ("way", "median s", "ratio", "rounds, s"), rows)
    _show_phases(times)


def _show_phases(times: Times) -> None:
    names = ("pipeline", "plan", "layers", "output and report", "factor, summed over layers")
    columns = zip(*map(astuple, times.phases), strict=True)
    middle = [median(column) for column in columns]
    service_s = median(times.job) - middle[0]
    rows = [
        (name, f"{spent:.3f}", f"{spent / middle[0]:.1%}") for name, spent in zip(names, middle, strict=True)
    ]
    rows.append(("service: claim, lease, publish", f"{service_s:.3f}", f"{service_s / middle[0]:.1%}"))
    show("Where the time of the job goes", ("phase", "median s", "of pipeline"), rows)
