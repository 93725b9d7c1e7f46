"""Progress as bars with rate and time left, where rich is installed and the stream is a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from eckart.plain_text import cut, plain
from eckart.progress import ProgressLine

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task, TaskID

# What is counted in bytes; all else is in layers or batches.
IN_BYTES = frozenset({"hash", "upload", "download"})
# What belongs to the bar of another word.
PART_OF = {"already": "upload", **dict.fromkeys(("succeeded", "failed", "canceled"), "compress")}
NAME_COLUMNS = 32


def progress_for(stream: TextIO) -> ProgressLine | Bars:
    """Return bars for a terminal, if the extra `cli` is installed, or else plain lines."""
    if stream.isatty():
        try:
            from rich.console import Console
        except ModuleNotFoundError:
            return ProgressLine(stream)
        console = Console(file=stream)
        if console.is_terminal and not console.is_dumb_terminal:
            return Bars(console)
    return ProgressLine(stream)


class Bars:
    """A bar for each kind of work, one after the other."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._verb = ""

    def __call__(self, done: int, total: int, what: str, /) -> None:
        word = what.partition(" ")[0].rstrip(",")
        verb = PART_OF.get(word, word)
        shown = cut(plain(what), NAME_COLUMNS)
        progress = self._progress or self._open()
        if self._task is None or verb != self._verb:
            self._end_waiting(progress)
            # It begins at what is already there, which the rate must not count.
            self._verb = verb
            self._task = progress.add_task(shown, total=total or None, completed=done, verb=verb)
        else:
            progress.update(self._task, completed=done, total=total or None, description=shown)

    def _end_waiting(self, progress: Progress) -> None:
        """Take away a bar without a total: what was waited for has come."""
        for task in progress.tasks:
            if task.total is None:
                progress.remove_task(task.id)

    def note(self, line: str) -> None:
        """Write a line that stays."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """End the bars, so that what follows starts on its own line."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def _open(self) -> Progress:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class Amounts(TextColumn):
            """How much of how much, and how fast."""

            def render(self, task: Task) -> Text:
                return Text(amounts(task.fields["verb"], task.completed, task.total, task.speed))

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            Amounts(""),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self._console,
        )
        self._progress.start()
        return self._progress


def amounts(verb: str, done: float, total: float | None, rate: float | None) -> str:
    """Say how much of how much is done, and how much in a second."""
    if total is None:
        return ""
    if verb in IN_BYTES:
        return f"{done / 1e6:,.1f}/{total / 1e6:,.1f} MB" + (
            "" if rate is None else f" {rate / 1e6:,.1f} MB/s"
        )
    return f"{done:,.0f}/{total:,.0f}" + ("" if rate is None else f" {rate:,.2f}/s")
