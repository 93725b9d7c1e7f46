"""`eckart jobs`, `checkpoints`, `watch`, `cancel`, `resume` and `delete`: what the service holds."""

from __future__ import annotations

import sys
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from eckart.bars import progress_for
from eckart.client import Client
from eckart.commands.following import follow_to_end, how_to_fetch, interrupted_with
from eckart.commands.options import add_service_options, add_verb, write_document, write_json
from eckart.commands.work import refuse_used
from eckart.errors import JobFailed
from eckart.lists import checkpoints_list, jobs_list
from eckart.types import CheckpointList, JobList

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from eckart.commands.options import Verbs

T = TypeVar("T")

STATES = ("queued", "running", "succeeded", "failed", "canceled")
JOB = "J0fc9df1157885d8b74e4193078509fe0"


def add_verbs(verbs: Verbs) -> None:
    jobs = add_verb(
        verbs,
        "jobs",
        "list the jobs of the service, newest first",
        ("eckart jobs", "eckart jobs --state failed", "eckart jobs --checkpoint my-model --json"),
    )
    jobs.add_argument("--state", choices=STATES, help="only jobs in this state")
    jobs.add_argument("--checkpoint", metavar="ID", help="only jobs on this checkpoint")
    jobs.set_defaults(run=run_jobs)
    checkpoints = add_verb(
        verbs,
        "checkpoints",
        "list the stored checkpoints, the latest first",
        ("eckart checkpoints", "eckart checkpoints --limit 5 --json"),
    )
    checkpoints.set_defaults(run=run_checkpoints)
    for verb in (jobs, checkpoints):
        verb.add_argument(
            "--limit", type=int, default=100, metavar="N", help="how many at most; default: 100"
        )
    watch = add_verb(
        verbs,
        "watch",
        "follow a job to its end, and fetch its result if you say where to",
        (f"eckart watch {JOB}", f"eckart watch {JOB} --out my-model-compressed"),
    )
    watch.add_argument("--out", type=Path, metavar="DIR", help="fetch the result into this folder")
    watch.set_defaults(run=run_watch)
    cancel = add_verb(
        verbs,
        "cancel",
        "end a queued or running job; of one that has ended nothing changes",
        (f"eckart cancel {JOB}",),
    )
    resume = add_verb(
        verbs, "resume", "start a failed job again, with its finished layers", (f"eckart resume {JOB}",)
    )
    cancel.set_defaults(run=run_change)
    resume.set_defaults(run=run_change)
    for verb in (watch, cancel, resume):
        verb.add_argument("job", metavar="JOB", help="the id of a job")
    delete = add_verb(
        verbs,
        "delete",
        "remove a job with its files, or a stored checkpoint, for good",
        (f"eckart delete job {JOB}", "eckart delete checkpoint my-model"),
    )
    delete.add_argument("kind", choices=("job", "checkpoint"), help="what to remove")
    delete.add_argument("id", metavar="ID", help="its id")
    delete.set_defaults(run=run_delete)
    for verb in (jobs, checkpoints, watch, cancel, resume, delete):
        add_service_options(verb)


def run_jobs(options: argparse.Namespace) -> None:
    with Client(options.url) as client:
        jobs = _first(options.limit, client.jobs(state=options.state, checkpoint=options.checkpoint))
    if options.json:
        write_document(JobList(jobs=jobs))
    else:
        sys.stdout.write(jobs_list(jobs))


def run_checkpoints(options: argparse.Namespace) -> None:
    with Client(options.url) as client:
        checkpoints = _first(options.limit, client.checkpoints())
    if options.json:
        write_document(CheckpointList(checkpoints=checkpoints))
    else:
        sys.stdout.write(checkpoints_list(checkpoints))


def _first(limit: int, items: Iterable[T]) -> tuple[T, ...]:
    """Take so many of a list that comes by pages, and say so where it has more."""
    limit = max(0, limit)
    found = tuple(islice(items, limit + 1))
    if len(found) > limit:
        sys.stderr.write(f"there are more than {limit}; see them with a greater --limit\n")
    return found[:limit]


def run_watch(options: argparse.Namespace) -> None:
    """Follow a job; with --json the job document is printed also of one that failed."""
    if options.out is not None:
        refuse_used(options.out)
    paths: list[Path] = []
    with Client(options.url) as client, closing(progress_for(sys.stderr)) as progress:
        try:
            job = follow_to_end(client, options.job, progress, options.url)
        except JobFailed as failed:
            if options.json:
                write_document(failed.job)
            raise
        if options.out is not None:
            with interrupted_with(how_to_fetch(job.id, options.url)):
                paths = list(client.download(job.id, options.out, progress=progress))
    if options.json:
        write_document(job)
    else:
        sys.stdout.write(jobs_list([job]) + "".join(f"{path}\n" for path in paths))


def run_change(options: argparse.Namespace) -> None:
    """Cancel or resume a job."""
    with Client(options.url) as client:
        job = client.cancel(options.job) if options.command == "cancel" else client.resume(options.job)
    if options.json:
        write_document(job)
    else:
        sys.stdout.write(f"job {job.id} is {job.state}\n")


def run_delete(options: argparse.Namespace) -> None:
    with Client(options.url) as client:
        if options.kind == "job":
            client.delete(options.id)
        else:
            client.delete_checkpoint(options.id)
    if options.json:
        write_json({"deleted": {"kind": options.kind, "id": options.id}})
    else:
        sys.stdout.write(f"deleted {options.kind} {options.id}\n")
