"""What every question is asked with."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """Where to put files, and how much to do; `scale` shrinks the inputs for trying, not for figures.

    Charts are drawn only where there is a folder for them.
    """

    place: Path
    scale: float
    rounds: int
    threads: int
    charts: Path | None = None
