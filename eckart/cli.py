"""The command line: `eckart serve | compress | plan | report`."""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from eckart import commands
from eckart.client import DEFAULT_URL
from eckart.errors import EckartError
from eckart.options import add_spec_options, spec_from

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0 it is done, 1 it was refused or failed, 2 it was not asked rightly."""
    parser = build_parser()
    options = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = run(options)
        sys.stdout.flush()
    except EckartError as error:
        print(f"eckart: {error}", file=sys.stderr)
        for field in error.errors:
            print(
                f"  {field.pointer}: {field.detail}" if field.pointer else f"  {field.detail}",
                file=sys.stderr,
            )
        return 1
    except BrokenPipeError:
        return 1  # whoever read us has gone, and would not read a message either
    except OSError as error:
        print(f"eckart: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\neckart: interrupted; a job that was accepted goes on", file=sys.stderr)
        return INTERRUPTED
    return status


def run(options: argparse.Namespace) -> int:
    if options.command == "serve":
        return commands.serve()
    if options.command == "report":
        commands.report(options.source, url=options.url, as_json=options.json)
        return 0
    spec = spec_from(options, options.parser)
    if options.command == "plan":
        commands.plan(options.source, spec, options.calibration, url=options.url, as_json=options.json)
    else:
        commands.compress(
            options.source,
            spec,
            options.calibration,
            out=options.out,
            url=options.url,
            as_json=options.json,
        )
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eckart", description="Make safetensors checkpoints smaller with SVD, CUR and CX."
    )
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    verbs.add_parser("serve", help="run API, worker and queue on this machine until Ctrl-C")
    compress = verbs.add_parser("compress", help="compress a checkpoint and fetch the result with its report")
    plan = verbs.add_parser("plan", help="show what would be done to each layer, without doing it")
    report = verbs.add_parser("report", help="show a job's report as a table")
    for verb in (compress, plan):
        verb.set_defaults(parser=verb)
        verb.add_argument(
            "source",
            metavar="CHECKPOINT",
            help="a .safetensors file, an index, a directory, or the id of a stored checkpoint",
        )
        add_spec_options(verb)
    compress.add_argument(
        "--out", type=Path, metavar="DIR", help="where the result goes; default: <name>-compressed"
    )
    report.add_argument(
        "source", metavar="JOB|FILE", help="a job's id, a report.json, or the directory it is in"
    )
    for verb in (compress, plan, report):
        add_common_options(verb)
    return parser


def add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--url",
        default=os.environ.get("ECKART_URL") or DEFAULT_URL,
        help="where the service is; default: $ECKART_URL, then %(default)s",
    )


if __name__ == "__main__":
    sys.exit(main())
