"""Plain-text tables."""

from collections.abc import Sequence


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column is aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}\n")
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    print()


def mib(nbytes: float) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


def seconds(values: Sequence[float]) -> str:
    """Format all rounds, in order."""
    return " ".join(f"{value:.2f}" for value in values)
