"""The kill matrix: `python -m tools.chaos` kills a real service again and again, and counts what it broke."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tools.chaos.campaign import Campaign
from tools.chaos.table import Table
from tools.chaos.trees import SingleTree, SupervisedTree, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

DISK_BYTES = 512 * 2**20
# Room for the decompositions of two of three samples: entries are used, made and evicted all the time.
SOME_CACHE = {"ECKART_CACHE_BYTES": "5000000"}
# Two jobs at a time, so that one goes on while the process of the other is stopped; and no cache.
TWO_WORKERS = {"ECKART_CACHE_BYTES": "0", "ECKART_WORKERS": "2", "ECKART_HEARTBEAT_S": "0.5"}
# A job whose process is killed before it got further fails, and its client resumes it.
ONE_ATTEMPT = {"ECKART_MAX_ATTEMPTS": "1"}
ARRANGEMENTS: dict[str, tuple[type[Tree], dict[str, str]]] = {
    "supervised": (SupervisedTree, SOME_CACHE),
    "single": (SingleTree, TWO_WORKERS),
}


def main() -> int:
    given = _parser().parse_args()
    # A run that is terminated must stop its services too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    tables = {name: Table(f"{name}, seed {given.seed}") for name in given.arrangement or ARRANGEMENTS}
    began = time.monotonic()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ek-", dir=given.dir)))
        campaigns = []
        for number in range(given.trees):
            for name, table in tables.items():
                # Every second one of an arrangement, and a lone one, has a small disk of its own.
                disk = stack.enter_context(small_disk(place / f"{name}-{number}", wanted=number % 2 == 0))
                tree_type, settings = ARRANGEMENTS[name]
                attempts = ONE_ATTEMPT if number % 2 else {}
                tree = tree_type(f"{name}-{number}", place / f"{name}-{number}", settings | attempts)
                campaigns.append((Campaign(tree, seed=given.seed, disk=disk, slack=given.slack), table))
        for campaign, _ in campaigns:
            stack.callback(campaign.stop)
        crashed = run_all(campaigns, given.rounds)
        if given.keep_logs:
            given.keep_logs.mkdir(parents=True, exist_ok=True)
            for log in place.glob("*.log"):
                shutil.copy(log, given.keep_logs)
    rounds, took_s = sum(table.rounds() for table in tables.values()), time.monotonic() - began
    print(*(f"\n{table}" for table in tables.values()), sep="\n")
    print(f"\n{rounds} rounds in {took_s:.0f} s")
    told = [fault for campaign, _ in campaigns for fault in campaign.ledger.told]
    print(*told, *crashed, sep="\n")
    return 1 if told or crashed else 0


def run_all(campaigns: list[tuple[Campaign, Table]], rounds: int) -> list[str]:
    """Run the campaigns side by side, and return what ended one too early."""
    crashed: list[str] = []

    def run(campaign: Campaign, table: Table, share: int) -> None:
        try:
            campaign.run(share, table)
        except Exception as error:  # noqa: BLE001 - the others go on, and the run fails at its end
            crashed.append(f"{campaign.ledger.tree} round {campaign.ledger.round}: {error!r}")

    threads = []
    for number, (campaign, table) in enumerate(campaigns):
        share = (rounds + number) // len(campaigns)
        threads.append(threading.Thread(target=run, args=(campaign, table, share), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return crashed


@contextmanager
def small_disk(place: Path, *, wanted: bool) -> Iterator[bool]:
    """Mount a small disk at `place` where that is allowed, and tell whether it is; else make a folder."""
    place.mkdir()
    if not wanted:
        yield False
        return
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0
    if not mounted:
        print(f"{place.name}: no small disk can be mounted here, so that no disk gets full", flush=True)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="kills, of all trees together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trees", type=int, default=2, help="services of each arrangement, side by side")
    parser.add_argument("--arrangement", action="append", choices=list(ARRANGEMENTS), help="only this one")
    parser.add_argument(
        "--slack", type=float, default=1.0, help="how much longer a recovery may take, on a busy machine"
    )
    parser.add_argument("--dir", type=Path, help="where to put the data directories")
    parser.add_argument("--keep-logs", type=Path, help="where to put the logs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
