"""The command line: the verbs of `eckart/commands/`, the exit statuses, and errors as sentences.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from eckart import launch
from eckart.commands import completion, jobs, reports, work
from eckart.commands.options import url_option
from eckart.errors import DigestError, EckartError, JobFailed, ServiceError, TransferError

if TYPE_CHECKING:
    from collections.abc import Sequence

DONE, REFUSED, AWAY, INTERRUPTED = 0, 1, 3, 130
STATUSES = f"""\
exit status:
  {DONE:<3}  done
  {REFUSED:<3}  the job failed, or the service or this command refused what was asked
  2    wrong usage
  {AWAY:<3}  no service answers, or the connection broke and did not come back
  {INTERRUPTED:<3}  interrupted by Ctrl-C

environment:
  ECKART_URL      the address of the service
  ECKART_API_KEY  the key that the service asks for

`eckart COMMAND --help` shows examples of each command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Return its exit status; argparse exits with 2 by itself."""
    options = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        options.run(options)
        sys.stdout.flush()
    except EckartError as error:
        _tell(error, options)
        is_away = isinstance(error, TransferError) and not isinstance(error, DigestError)
        return AWAY if is_away else REFUSED
    except (launch.LocalRunError, BrokenPipeError):
        return REFUSED  # the worker has said why; the reader of our output has gone
    except (UnicodeError, httpx.InvalidURL) as error:
        print(f"eckart: no request can carry what was given: {error}", file=sys.stderr)
        return REFUSED
    except OSError as error:
        print(f"eckart: {_sentence(error)}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt as stop:
        what = f"; {stop}" if str(stop) else ""
        print(f"\neckart: interrupted{what}", file=sys.stderr)
        return INTERRUPTED
    return DONE


def _sentence(error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        folder = Path(os.fsdecode(error.filename)).parent
        missing = f"file {error.filename}" if folder.is_dir() else f"folder {folder}"
        return f"There is no {missing}."
    if error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return error.strerror or str(error)


def _tell(error: EckartError, options: argparse.Namespace) -> None:
    """Print an error with its fields, and what can be done."""
    print(f"eckart: {error}", file=sys.stderr)
    for field in error.errors:
        line = f"{field.pointer}: {field.detail}" if field.pointer else field.detail
        print(f"  {line}", file=sys.stderr)
    if isinstance(error, JobFailed) and error.job.error and error.job.error.status >= 500:
        resume = f"eckart resume {error.job.id}{url_option(options.url)}"
        print(f"  its finished layers are kept; to go on with them: {resume}", file=sys.stderr)
    if isinstance(error, ServiceError) and error.status == 401:
        print("  give the key of the service in ECKART_API_KEY", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eckart",
        description="Make safetensors checkpoints smaller with SVD, CUR and CX.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    work.add_verbs(verbs)
    reports.add_verbs(verbs)
    jobs.add_verbs(verbs)
    completion.add_verbs(verbs, parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
