"""`eckart report` and `compare`: what jobs have done."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from eckart.client import Client
from eckart.commands.options import add_service_options, add_verb, write_document, write_json
from eckart.companions import REPORT_NAME
from eckart.comparison import ORDERS, compare, comparison_table
from eckart.errors import InputError
from eckart.pipeline_folder import is_pipeline
from eckart.report_page import report_page
from eckart.table import plan_table, report_table
from eckart.types import PlanDocument, Report

if TYPE_CHECKING:
    import argparse

    from eckart.commands.options import Verbs

SOURCE = "the id of a job, a report.json, or the directory that holds it"
REPORT_EXAMPLES = (
    "eckart report my-model-compressed",
    "eckart report J0fc9df1157885d8b74e4193078509fe0 --json",
    "eckart report my-model-compressed --html report.html    # with plots, in one file",
)
COMPARE_EXAMPLES = (
    "eckart compare by-svd/ by-cur/",
    "eckart compare J0fc9df1157885d8b74e4193078509fe0 by-svd/report.json --by error --top 5",
)


def add_verbs(verbs: Verbs) -> None:
    report = add_verb(verbs, "report", "show a job's report as a table, or as a page", REPORT_EXAMPLES)
    report.add_argument("source", metavar="JOB|FILE", help=SOURCE)
    report.add_argument(
        "--html",
        type=Path,
        metavar="OUT",
        help="write the report as one HTML page with plots, which needs no service",
    )
    report.set_defaults(run=run_report)
    comparing = add_verb(
        verbs,
        "compare",
        "show two jobs side by side: totals, specs, and the layers that differ most",
        COMPARE_EXAMPLES,
    )
    comparing.add_argument("a", metavar="A", help=SOURCE)
    comparing.add_argument("b", metavar="B", help="the same, of the other job")
    comparing.add_argument(
        "--by", choices=ORDERS, default="bytes", help="what layers differ in most; default: bytes"
    )
    comparing.add_argument(
        "--top", type=int, default=10, metavar="N", help="how many layers to show; default: 10"
    )
    comparing.set_defaults(run=run_compare)
    for verb in (report, comparing):
        add_service_options(verb)


def run_compare(options: argparse.Namespace) -> None:
    """Compare two reports, each on disk or of a job."""
    a, b = (find_report(source, options.url) for source in (options.a, options.b))
    comparison = compare(a, b, by=options.by, top=max(0, options.top))
    if options.json:
        write_document(comparison)
    else:
        sys.stdout.write(comparison_table(comparison, options.a, options.b))


def run_report(options: argparse.Namespace) -> None:
    """Show a report on disk, or that of a job."""
    report = find_report(options.source, options.url)
    if options.html is None:
        show(report, as_json=options.json)
        return
    template = (resources.files("eckart") / "report.html").read_text("utf-8")
    options.html.write_text(
        report_page(template, report.model_dump(mode="json", exclude_unset=True)), "utf-8"
    )
    if options.json:
        write_json({"files": [str(options.html)]})
    else:
        sys.stdout.write(f"{options.html}\n")


def find_report(source: str, url: str) -> Report:
    """Read a report on disk, or ask the service for that of a job."""
    path = Path(source)
    if is_pipeline(path):
        raise InputError(f"{path}: each component of a pipeline has a report; give the folder of one")
    if path.is_dir():
        path /= REPORT_NAME
    if path.is_file():
        return read_report(path)
    if path.name.endswith(".json"):
        raise InputError(f"{path}: there is no such file")
    with Client(url) as client:
        return client.report(source)


def read_report(path: Path) -> Report:
    try:
        return Report.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path} is not a report that this version of eckart can read") from error


def show(document: Report | PlanDocument, *, as_json: bool) -> None:
    if as_json:
        write_document(document)
    else:
        sys.stdout.write(report_table(document) if isinstance(document, Report) else plan_table(document))
