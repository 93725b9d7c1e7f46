"""The benchmarks: `python -m benchmarks` runs all, `python -m benchmarks NAME` one."""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks import (
    again,
    calibrated,
    experts,
    forms,
    gpu,
    gpu_model,
    growth,
    kept,
    memory,
    overhead,
    page,
    peers,
    selectors,
    upload,
    worst_bodies,
)
from benchmarks.machine import describe_machine, free_kernels
from benchmarks.options import Options

BENCHMARKS = {
    "upload": upload.ask,
    "overhead": overhead.ask,
    "memory": memory.ask,
    "peers": peers.ask,
    "growth": growth.ask,
    "forms": forms.ask,
    "again": again.ask,
    "experts": experts.ask,
    "selectors": selectors.ask,
    "calibrated": calibrated.ask,
    "worst": worst_bodies.ask,
    "kept": kept.ask,
    "page": page.ask,
    "gpu": gpu.ask,
    "gpu-model": gpu_model.ask,
}


def main() -> int:
    given = _parser().parse_args()
    forced_kernels = free_kernels()
    # A run that is terminated must stop its service too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # a long run shows its progress
    for name in [given.name] if given.name else BENCHMARKS:
        with tempfile.TemporaryDirectory(prefix="eckart-bench-", dir=given.dir) as place:
            if given.charts:
                given.charts.mkdir(parents=True, exist_ok=True)
            options = Options(Path(place), given.scale, given.rounds, given.threads, given.charts)
            print(f"\n## {name}\n\n{describe_machine(options, forced_kernels)}\n")
            BENCHMARKS[name](options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=list(BENCHMARKS), help="one benchmark; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="smaller inputs for a quick try, e.g. 0.05")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each way; the median counts")
    threads = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=threads, help="threads of the numerics, on both sides")
    parser.add_argument("--charts", type=Path, help="a folder for the charts of peers and growth")
    parser.add_argument("--dir", help="a directory for temporary files; its disk is measured too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
