"""What each command does, on top of the client; results go to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from eckart.client import Client
from eckart.errors import InputError
from eckart.progress import ProgressLine
from eckart.table import plan_table, report_table
from schemas.format.index import INDEX_ENDING
from schemas.report import REPORT_NAME, Report

if TYPE_CHECKING:
    from schemas.spec import CompressionSpec

OURS = frozenset({"service", "state", "schemas", "worker", "eckart"})


def compress(
    given: str,
    spec: CompressionSpec,
    calibration: str | None,
    *,
    out: Path | None,
    url: str,
    as_json: bool,
) -> None:
    """Send, wait, fetch, and show the report."""
    into = out or default_out(given)
    refuse_used(into)
    with Client(url) as client, closing(ProgressLine(sys.stderr)) as progress:
        job = client.compress(given, spec, calibration=calibration, wait=False, progress=progress)
        progress.note(f"job {job.id}")
        client.wait(job.id, progress=progress)
        paths = client.download(job.id, into, progress=progress)
    show_report(read_report(into / REPORT_NAME), as_json=as_json)
    if not as_json:
        sys.stdout.write("\n" + "".join(f"{path}\n" for path in paths))


def plan(given: str, spec: CompressionSpec, calibration: str | None, *, url: str, as_json: bool) -> None:
    """Show what would be done."""
    with Client(url) as client:
        document = client.plan(given, spec, calibration=calibration)
    sys.stdout.write(document.model_dump_json(indent=2) + "\n" if as_json else plan_table(document))


def report(given: str, *, url: str, as_json: bool) -> None:
    """Show a report that is on disk, or that of a job."""
    path = Path(given)
    if path.is_dir():
        path /= REPORT_NAME
    if path.is_file():
        show_report(read_report(path), as_json=as_json)
        return
    if path.name.endswith(".json"):
        raise InputError(f"{path}: there is no such file")
    with Client(url) as client:
        show_report(client.report(given), as_json=as_json)


def serve() -> int:
    """Run the whole service on this machine until Ctrl-C."""
    try:
        from service.standalone.__main__ import main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OURS:
            raise
        raise InputError(
            f"the service is not installed here ({error.name} is missing): pip install 'eckart[standalone]'"
        ) from error
    return main()


def default_out(given: str) -> Path:
    """Name the output after the input: in the current directory, never beside the input's own files."""
    name = Path(given).absolute().name
    return Path(f"{name.removesuffix(INDEX_ENDING).removesuffix('.safetensors')}-compressed")


def refuse_used(into: Path) -> None:
    """Refuse a place that is taken before any work is done; what an earlier try broke off may lie there."""
    if into.exists() and not into.is_dir():
        raise InputError(f"{into} is no directory; name another place with --out")
    if into.is_dir() and any(not path.name.startswith(".") for path in into.iterdir()):
        raise InputError(f"{into} is not empty; name another directory with --out")


def read_report(path: Path) -> Report:
    try:
        return Report.model_validate_json(path.read_bytes(), extra="ignore")
    except ValidationError as error:
        raise InputError(f"{path} is no report that this version of eckart understands") from error


def show_report(report: Report, *, as_json: bool) -> None:
    sys.stdout.write(report.model_dump_json(indent=2) + "\n" if as_json else report_table(report))
