"""Tables in Markdown, and their place in a page of the documentation."""

import re
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
PAGE = "7-study.md"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table, its first column to the left and the numbers to the right."""
    lines = [header, ["---", *("--:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def put(text: str, name: str, part: str) -> str:
    """Return a page with the part between its marks replaced."""
    marks = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if marks.search(text) is None:
        raise ValueError(f"the page has no place for {name!r}")
    return marks.sub(lambda found: f"{found[1]}{part}\n{found[2]}", text)


def publish(into: Path, name: str, *, tables: str, picture: str, docs: bool) -> None:
    """Leave table and picture in a directory; in the documentation too, if so asked."""
    (into / f"{name}.md").write_text(tables + "\n")
    (into / f"{name}.svg").write_text(picture)
    if docs:
        page = DOCS / PAGE
        page.write_text(put(page.read_text(), name, tables))
        (DOCS / f"7-{name}.svg").write_text(picture)
