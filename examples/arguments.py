"""The arguments that all studies take."""

import argparse
import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


def arguments(name: str, description: str | None) -> argparse.Namespace:
    """Parse the command line of `python -m examples.<name>`."""
    parser = argparse.ArgumentParser(prog=f"python -m examples.{name}", description=description)
    parser.add_argument("--into", type=Path, default=ROOT / "study", help="the directory for all files")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--docs", action="store_true", help="also update table and chart in docs/")
    return parser.parse_args()
