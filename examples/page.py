"""Markdown tables, and where they go in docs/7-study.md."""

import re
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
PAGE = "7-study.md"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table: the first column is aligned left, the others right."""
    lines = [header, ["---", *("--:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def put(text: str, name: str, part: str) -> str:
    """Return the page with the text between two markers replaced."""
    marks = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if marks.search(text) is None:
        raise ValueError(f"the page has no markers for {name!r}")
    return marks.sub(lambda found: f"{found[1]}{part}\n{found[2]}", text)


def publish(into: Path, name: str, *, tables: str, picture: str, docs: bool) -> None:
    """Write tables and chart into a directory, and with `docs` into the documentation too."""
    (into / f"{name}.md").write_text(tables + "\n")
    (into / f"{name}.svg").write_text(picture)
    if docs:
        page = DOCS / PAGE
        page.write_text(put(page.read_text(), name, tables))
        (DOCS / f"7-{name}.svg").write_text(picture)
