"""The table of a run: one row for each kind of kill."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING

from tools.chaos.ledger import FAULTS

if TYPE_CHECKING:
    from tools.chaos.ledger import Ledger

COLUMNS = ("kill", "rounds", *FAULTS, "p50 s", "worst s")


class Table:
    """Collects the rounds of one arrangement."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._took: dict[str, list[float]] = defaultdict(list)
        self._ledgers: list[Ledger] = []

    def add_round(self, kind: str, took_s: float) -> None:
        self._took[kind].append(took_s)

    def add_ledger(self, ledger: Ledger) -> None:
        self._ledgers.append(ledger)

    def rounds(self) -> int:
        return sum(map(len, self._took.values()))

    def __str__(self) -> str:
        kinds = sorted(self._took.keys() | {kind for each in self._ledgers for kind, _ in each.faults})
        rows = [self._row(kind) for kind in kinds]
        lines = [f"**{self._title}**: {self._sums()}", "", _line(COLUMNS)]
        return "\n".join([*lines, _line(["---"] * len(COLUMNS)), *map(_line, rows)])

    def _row(self, kind: str) -> list[str]:
        took = self._took[kind]
        faults = [str(sum(each.faults[kind, what] for each in self._ledgers)) for what in FAULTS]
        times = [f"{median(took):.1f}", f"{max(took):.1f}"] if took else ["", ""]
        return [kind, str(len(took)), *faults, *times]

    def _sums(self) -> str:
        jobs = sum(len(each.promises) for each in self._ledgers)
        reads = sum(each.reads for each in self._ledgers)
        resumed = sum(each.resumed for each in self._ledgers)
        return f"{self.rounds()} rounds, {jobs} jobs, {reads} results read, {resumed} jobs resumed"


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"
