"""The command line: `eckart serve | compress | plan | report | expand`.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from contextlib import closing
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from eckart import launch
from eckart.checkpoint import ENDING, bare_name, find_checkpoint, listed
from eckart.client import DEFAULT_URL, Client
from eckart.companions import REPORT_NAME, copy_subfolders
from eckart.errors import EckartError, InputError, JobFailed
from eckart.progress import ProgressLine
from eckart.report_page import report_page
from eckart.spec import schema, spec_document
from eckart.table import plan_table, report_table
from eckart.types import PlanDocument, Report

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130
# The options for other checkpoints, and the fields of a spec that name them.
REFERENCES = ("calibration", "base")
KNOWN_PAIRS = "neurons"
# How a JSON schema's types are read from a command line.
NUMBERS: dict[str, tuple[type, str]] = {"integer": (int, "N"), "number": (float, "X")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Return 0 for success, 1 for a refusal or failure; argparse exits with 2."""
    options = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        options.run(options)
        sys.stdout.flush()
    except EckartError as error:
        print(f"eckart: {error}", file=sys.stderr)
        for field in error.errors:
            line = f"{field.pointer}: {field.detail}" if field.pointer else field.detail
            print(f"  {line}", file=sys.stderr)
        if isinstance(error, JobFailed) and error.job.error and error.job.error.status >= 500:
            resume = f"{options.url}/v1/jobs/{error.job.id}/resume"
            print(
                f"  its finished layers are kept; to go on with them: curl -X POST {resume}", file=sys.stderr
            )
        return 1
    except (launch.LocalRunError, BrokenPipeError):
        return 1  # the worker has said why; the reader of our output has gone
    except OSError as error:
        print(f"eckart: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        goes_on = "" if getattr(options, "local", True) else "; a job that was accepted goes on"
        print(f"\neckart: interrupted{goes_on}", file=sys.stderr)
        return INTERRUPTED
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eckart", description="Make safetensors checkpoints smaller with SVD, CUR and CX."
    )
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = verbs.add_parser("serve", help="run API, worker and queue on this machine until Ctrl-C")
    serve.set_defaults(run=lambda _options: launch.serve())
    compress = verbs.add_parser("compress", help="compress a checkpoint and fetch the result with its report")
    compress.set_defaults(run=run_compress, parser=compress)
    plan = verbs.add_parser("plan", help="show what would be done to each layer, without doing it")
    plan.set_defaults(run=run_plan, parser=plan)
    report = verbs.add_parser("report", help="show a job's report as a table, or as a page")
    report.set_defaults(run=run_report)
    expand = verbs.add_parser(
        "expand", help="multiply a compressed checkpoint out, so that any loader takes it"
    )
    expand.add_argument(
        "source", type=Path, metavar="CHECKPOINT", help="a .safetensors file, an index or a directory"
    )
    expand.add_argument("out", type=Path, metavar="OUT", help="a new folder, or a .safetensors file")
    expand.set_defaults(run=run_expand)
    for verb in (compress, plan):
        verb.add_argument(
            "source",
            metavar="CHECKPOINT",
            help="a .safetensors file, an index, a directory, or the id of a stored checkpoint",
        )
        verb.add_argument("--local", action="store_true", help="use the bundled worker instead of a service")
        add_spec_options(verb)
    compress.add_argument("--out", type=Path, metavar="DIR", help="output folder; default: <name>-compressed")
    report.add_argument(
        "source", metavar="JOB|FILE", help="the id of a job, a report.json, or the directory that holds it"
    )
    report.add_argument(
        "--html",
        type=Path,
        metavar="OUT",
        help="write the report as one HTML page with plots, which needs no service",
    )
    for verb in (compress, plan, report):
        add_common_options(verb)
    return parser


def add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--url",
        default=os.environ.get("ECKART_URL") or DEFAULT_URL,
        help="the address of the service; default: $ECKART_URL, then %(default)s; its API key, if it "
        "needs one, is $ECKART_API_KEY",
    )


def add_spec_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each simple field of the server's spec, and `--spec` for all others."""
    spec = schema()["spec"]
    fields = spec["properties"]
    group = parser.add_argument_group("the spec")
    rank = group.add_mutually_exclusive_group()
    rank.add_argument("--rank", type=int, metavar="K", help="the rank of every layer")
    for name in rank_rules():
        add_option(rank, name, spec["$defs"]["SpecRule"]["properties"][name])
    rank.add_argument("--spec", metavar="FILE|JSON", help="a whole spec, as a JSON file or as JSON text")
    for name in simple_fields():
        add_option(group, name, fields[name])
    pairs = fields["pairs"]["description"].replace("%", "%%")
    group.add_argument("--pairs", type=_pairs, metavar=f"{KNOWN_PAIRS}|JSON", help=pairs)
    group.add_argument(
        "--calibration",
        metavar="FILE|ID",
        help="Gram matrices of the layers' inputs, as eckart.calibrate writes them, or the id of stored ones",
    )
    group.add_argument(
        "--base",
        metavar="CHECKPOINT|ID",
        help="the checkpoint that this one was fine-tuned from: compress the difference. Without --layout "
        "the result is a LoRA adapter",
    )


def add_option(group: Any, name: str, field: dict[str, Any]) -> None:
    """Turn one field of a JSON schema into an option."""
    field = value_schema(field)
    text = field["description"].replace("%", "%%")
    if default := field.get("default"):
        text += f" Default: {', '.join(default) if isinstance(default, list) else default}."
    option = "--" + name.replace("_", "-")
    if "oneOf" in field:
        text += " Several by commas, or repeated."
        names = _one_of(field)["enum"]
        metavar = "{" + ",".join(names) + "}"
        group.add_argument(option, action="extend", type=partial(_listed, names), metavar=metavar, help=text)
    elif "enum" in field:
        kind = NUMBERS[field["type"]][0] if field.get("type") in NUMBERS else str
        group.add_argument(option, type=kind, choices=field["enum"], help=text)
    elif field["type"] == "array":
        group.add_argument(option, action="append", metavar="PATTERN", help=text + " May be repeated.")
    else:
        kind, metavar = NUMBERS[field["type"]]
        group.add_argument(option, type=kind, metavar=metavar, help=text)


def _listed(names: Sequence[str], text: str) -> list[str]:
    given = text.split(",")
    for name in given:
        if name not in names:
            known = ", ".join(map(repr, names))
            raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (choose from {known})")
    return given


def _pairs(text: str) -> Any:
    if text == KNOWN_PAIRS:
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"give {KNOWN_PAIRS}, or the pairs as a JSON list") from None


def value_schema(field: dict[str, Any]) -> dict[str, Any]:
    """Return an optional field's schema without its null."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"]
    return {**field, **kinds[0]} if len(kinds) == 1 else field


def rank_rules() -> list[str]:
    """Return the rules that can take the place of a rank."""
    return list(schema()["spec"]["$defs"]["SpecRule"]["properties"])


def simple_fields() -> list[str]:
    """Return the fields that an option made from the schema can hold; the others have their own."""
    return [name for name, field in schema()["spec"]["properties"].items() if is_simple(value_schema(field))]


def _one_of(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one value of a field that may also be a list."""
    one: dict[str, Any] = next(kind for kind in field["oneOf"] if kind["type"] == "string")
    return one


def is_simple(field: dict[str, Any]) -> bool:
    if "oneOf" in field and all("type" in kind for kind in field["oneOf"]):
        return any("enum" in kind for kind in field["oneOf"])
    if field.get("type") == "array":
        return bool(field["items"].get("type") == "string")
    return "enum" in field or field.get("type") in NUMBERS


def spec_from(options: argparse.Namespace) -> dict[str, Any]:
    """Make the spec from the options; the server fills in the defaults of all others."""
    fields = (*simple_fields(), "pairs")
    given = {name: getattr(options, name) for name in fields if getattr(options, name) is not None}
    if options.spec is not None:
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            options.parser.error(f"--spec is the whole spec; leave out {names}")
        is_json = options.spec.lstrip().startswith("{")
        return spec_document(options.spec if is_json else Path(options.spec).read_bytes())
    if options.base is not None:
        given.setdefault("layout", "adapter")
    if len(given.get("method", ())) == 1:
        given["method"] = given["method"][0]
    rules = {name: getattr(options, name) for name in rank_rules() if getattr(options, name) is not None}
    rank = rules or options.rank
    if rank is None and "method" not in given:
        names = " ".join("--" + name.replace("_", "-") for name in ("rank", *rank_rules(), "spec"))
        options.parser.error(f"one of the arguments {names} is required")
    return spec_document(given if rank is None else {**given, "rank": rank})


def run_compress(options: argparse.Namespace) -> None:
    """Compress, here or by the service, and show the report."""
    spec = spec_from(options)
    into = options.out or default_out(options.source)
    refuse_used(into)
    folder = model_folder(options.source)
    if options.local:
        if into.suffix == ENDING:
            raise InputError(f"{into}: --out names a directory")
        run_local(options, spec, into)
        paths = sorted(into.iterdir())
        paths += copy_subfolders(folder, into) if folder else ()
    else:
        with Client(options.url) as client, closing(ProgressLine(sys.stderr)) as progress:
            named = {name: getattr(options, name) for name in REFERENCES}
            job = client.compress(options.source, spec, **named, wait=False, progress=progress)
            progress.note(f"job {job.id}")
            client.wait(job.id, progress=progress)
            paths = list(client.download(job.id, into, source=folder, progress=progress))
    show(read_report(into / REPORT_NAME), as_json=options.json)
    if not options.json:
        sys.stdout.write("\n" + "".join(f"{path}\n" for path in paths))


def model_folder(source: str) -> Path | None:
    """Return the folder to compress, having said what of it stays out; None for a file or an id."""
    files = find_checkpoint(source)
    if files is None or not Path(source).is_dir():
        return None
    if left_out := files.companions.left_out:
        print(f"left out: {listed(left_out)}", file=sys.stderr)
    return Path(source)


def run_plan(options: argparse.Namespace) -> None:
    """Show what a job would do."""
    spec = spec_from(options)
    if options.local:
        plan = PlanDocument.model_validate_json(run_local(options, spec))
    else:
        with Client(options.url) as client:
            plan = client.plan(options.source, spec, calibration=options.calibration, base=options.base)
    show(plan, as_json=options.json)


def run_local(options: argparse.Namespace, spec: dict[str, Any], *into: Path) -> str:
    """Run the bundled worker on files; return its output."""
    if find_checkpoint(options.source) is None:
        raise InputError(f"{options.source}: there is no such file or directory; --local takes no id")
    given = {name: Path(path) for name in REFERENCES if (path := getattr(options, name)) is not None}
    return launch.run_worker_command(
        options.command, Path(options.source), *into, spec=json.dumps(spec), references=given
    )


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
    sys.stdout.write(f"{options.html}\n")


def find_report(source: str, url: str) -> Report:
    """Read a report on disk, or ask the service for that of a job."""
    path = Path(source)
    if path.is_dir():
        path /= REPORT_NAME
    if path.is_file():
        return read_report(path)
    if path.name.endswith(".json"):
        raise InputError(f"{path}: there is no such file")
    with Client(url) as client:
        return client.report(source)


def run_expand(options: argparse.Namespace) -> None:
    """Write the dense checkpoint of a compressed one."""
    try:
        from eckart.torch import expand
    except ModuleNotFoundError as error:
        raise InputError(str(error)) from error
    sys.stdout.write("".join(f"{path}\n" for path in expand(options.source, options.out)))


def default_out(given: str) -> Path:
    """Name the output after the input, in the current directory."""
    name = Path(given).absolute().name
    return Path(f"{bare_name(name)}-compressed")


def refuse_used(into: Path) -> None:
    """Refuse an output folder with files before any work; hidden ones are parts of a broken download."""
    if into.exists() and not into.is_dir():
        raise InputError(f"{into} is not a directory; name another one with --out")
    if into.is_dir() and any(not path.name.startswith(".") for path in into.iterdir()):
        raise InputError(f"{into} is not empty; name another directory with --out")


def read_report(path: Path) -> Report:
    try:
        return Report.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path} is not a report that this version of eckart can read") from error


def show(document: Report | PlanDocument, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(document.model_dump_json(indent=2, exclude_unset=True) + "\n")
    else:
        sys.stdout.write(report_table(document) if isinstance(document, Report) else plan_table(document))


if __name__ == "__main__":
    sys.exit(main())
