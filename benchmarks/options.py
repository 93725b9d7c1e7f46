"""The options of every benchmark."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """Where to put files, and how much to measure; a `scale` below 1 is for a quick try, not for figures.

    Charts are drawn only if `charts` names a folder.
    """

    place: Path
    scale: float
    rounds: int
    threads: int
    charts: Path | None = None
