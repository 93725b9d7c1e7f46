"""`python -m worker`: the worker itself, or one compression without any service."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from pydantic import ValidationError

from schemas.format.errors import CheckpointError
from schemas.job import Progress
from schemas.planning.calibration import CalibrationError
from schemas.problem import SpecError, field_problems
from schemas.report import Report
from schemas.spec import CompressionSpec
from state.settings import setting_faults
from worker.settings import Settings

# In a process of its own: a parent that has touched CUDA must not be forked.
NO_CUDA = "import sys, torch; sys.exit(not torch.cuda.is_available())"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; without one, the worker."""
    options = _parser().parse_args(arguments)
    try:
        settings = Settings()
    except ValidationError as error:
        print(*setting_faults(error), sep="\n", file=sys.stderr)
        return 2
    if options.command == "compress":
        return _compress(options, settings)
    return _serve(settings)


def _serve(settings: Settings) -> int:
    if settings.redis_url is None:
        print("ECKART_REDIS_URL is not set; give it, or run `eckart serve`, which sets it", file=sys.stderr)
        return 2
    if (
        settings.device == "cuda"
        and subprocess.run([sys.executable, "-P", "-c", NO_CUDA], check=False).returncode
    ):
        print("ECKART_DEVICE=cuda, but torch finds no CUDA device; use auto or cpu", file=sys.stderr)
        return 2
    from worker.celery_app import run_worker

    run_worker(settings, settings.redis_url)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    compress = commands.add_parser("compress", help="compress a checkpoint on this machine")
    compress.add_argument("input", type=Path, help="a safetensors file, an index or a directory with one")
    compress.add_argument(
        "output", type=Path, help="a new directory for the files and report.json, or a new .safetensors file"
    )
    compress.add_argument("--spec", required=True, help="the spec as JSON, or a file that holds it")
    compress.add_argument(
        "--calibration",
        type=Path,
        help="Gram matrices of the layers' inputs, as eckart.calibrate writes them",
    )
    return parser


def _compress(options: argparse.Namespace, settings: Settings) -> int:
    try:
        report = _work(options, _spec(options.spec), settings)
    except ValidationError as error:
        for fault in field_problems(error.errors()):
            print(f"spec{fault.pointer}: {fault.detail}", file=sys.stderr)
        return 1
    except SpecError as error:
        print(f"spec{error.pointer}: {error}", file=sys.stderr)
        return 1
    except CalibrationError as error:
        print(f"{options.calibration}: {error}", file=sys.stderr)
        return 1
    except CheckpointError as error:
        print(f"{options.input}: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(report.totals.model_dump(), indent=1))
    return 0


def _work(options: argparse.Namespace, spec: CompressionSpec, settings: Settings) -> Report:
    from worker.context import choose_device, set_threads
    from worker.local import compress_local

    set_threads(settings.threads)
    device = choose_device(settings.device)
    return compress_local(
        options.input,
        options.output,
        spec,
        calibration=options.calibration,
        device=device,
        observe=_show_progress,
    )


def _spec(text: str) -> CompressionSpec:
    if not text.lstrip().startswith("{"):
        text = Path(text).read_text()
    return CompressionSpec.model_validate_json(text)


def _show_progress(progress: Progress) -> None:
    done = f"{progress.layers_done}/{progress.layers_total}"
    print(f"{progress.fraction:4.0%} {done} {progress.layer or 'writing'}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
