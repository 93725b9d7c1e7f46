"""`python -m worker`: run the worker, or compress or plan one checkpoint without a service."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from pydantic import ValidationError

from schemas.format.errors import CheckpointError
from schemas.format.files import open_checkpoint
from schemas.job import Progress
from schemas.plan import PlanDocument
from schemas.planning.documents import plan_document
from schemas.planning.references import MisfitError, References, open_references
from schemas.problem import SpecError, field_problems
from schemas.report import Report
from schemas.spec import CompressionSpec
from state.settings import setting_errors
from worker.settings import Settings
from worker.work_plan import plan_work, refuse_ids

# Runs in a separate process, since a process that has initialized CUDA must not fork.
NO_CUDA = "import sys, torch; sys.exit(not torch.cuda.is_available())"


def main(arguments: list[str] | None = None) -> int:
    """Run a command, or the worker if none is given; the status of wrong settings is `os.EX_CONFIG`."""
    options = _parser().parse_args(arguments)
    try:
        settings = Settings()
    except ValidationError as error:
        print(*setting_errors(error), sep="\n", file=sys.stderr)
        return os.EX_CONFIG
    if options.command is None:
        return _serve(settings)
    try:
        _run(options, settings)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print(*_error_lines(error, options), sep="\n", file=sys.stderr)
        return 1
    return 0


def _error_lines(error: Exception, options: argparse.Namespace) -> list[str]:
    """Describe an error in lines that begin with the invalid file or field."""
    if isinstance(error, ValidationError):
        found = field_problems(error.errors(), CompressionSpec)
        return [f"spec{field.pointer}: {field.detail}" for field in found]
    if isinstance(error, SpecError):
        return [f"spec{error.pointer}: {error}"]
    if isinstance(error, MisfitError):
        return [f"{getattr(options, error.field)}: {error}"]
    if isinstance(error, CheckpointError):
        return [f"{options.input}: {error}"]
    return [str(error)]


def _serve(settings: Settings) -> int:
    if settings.redis_url is None:
        print("ECKART_REDIS_URL is not set; set it, or run `eckart serve`, which sets it", file=sys.stderr)
        return os.EX_CONFIG
    if (
        settings.device == "cuda"
        and subprocess.run([sys.executable, "-P", "-c", NO_CUDA], check=False).returncode
    ):
        print("ECKART_DEVICE=cuda, but torch finds no CUDA device; use auto or cpu", file=sys.stderr)
        return os.EX_CONFIG
    from worker.celery_app import run_worker

    run_worker(settings, settings.redis_url)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    compress = commands.add_parser("compress", help="compress a checkpoint on this machine")
    plan = commands.add_parser("plan", help="print the plan for a checkpoint on this machine")
    for command in (compress, plan):
        command.add_argument("input", type=Path, help="a safetensors file, an index or a directory with one")
        command.add_argument("--spec", required=True, help="the spec as JSON, or a file that holds it")
        command.add_argument(
            "--calibration",
            type=Path,
            help="Gram matrices of the layers' inputs, as eckart.calibrate writes them",
        )
        command.add_argument(
            "--base", type=Path, help="the checkpoint that the input was fine-tuned from, for an adapter"
        )
    compress.add_argument(
        "output", type=Path, help="a new directory for the files and report.json, or a new .safetensors file"
    )
    return parser


def _run(options: argparse.Namespace, settings: Settings) -> None:
    spec = _spec(options.spec)
    if options.command == "plan":
        print(_plan(options, spec).model_dump_json(indent=1))
    else:
        print(json.dumps(_compress(options, spec, settings).totals.model_dump(), indent=1))


def _plan(options: argparse.Namespace, spec: CompressionSpec) -> PlanDocument:
    refuse_ids(spec)
    files = open_checkpoint(options.input)
    work = plan_work(files, spec, open_references(_references(options)))
    return plan_document(options.input.absolute().name, work.plan)


def _references(options: argparse.Namespace) -> References[Path]:
    return References(calibration=options.calibration, base=options.base)


def _compress(options: argparse.Namespace, spec: CompressionSpec, settings: Settings) -> Report:
    from worker.device import choose_device, set_threads
    from worker.local import compress_local

    set_threads(settings.threads)
    device = choose_device(settings.device)
    return compress_local(
        options.input,
        options.output,
        spec,
        references=_references(options),
        device=device,
        observe=ProgressLines(),
    )


def _spec(text: str) -> CompressionSpec:
    if not text.lstrip().startswith("{"):
        text = Path(text).read_text()
    return CompressionSpec.model_validate_json(text)


class ProgressLines:
    """Prints the progress, each line once: nothing changes while thousands of tensors are written."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, progress: Progress) -> None:
        done = f"{progress.layers_done}/{progress.layers_total}"
        line = f"{progress.fraction:4.0%} {done} {progress.layer or 'writing'}"
        if line != self._last:
            print(line, file=sys.stderr)
            self._last = line


if __name__ == "__main__":
    sys.exit(main())
