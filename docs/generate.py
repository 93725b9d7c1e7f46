"""Rebuild what the code defines: parts of the documentation, eckart/schema.json; `--check` only looks."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings

from schemas.problem import ProblemKind
from schemas.report import KEPT_REASONS, NOT_SELECTED
from schemas.spec import CompressionSpec
from service.app import create_app
from service.report_template import report_template
from service.settings import Settings as ServiceSettings
from worker.settings import Settings as WorkerSettings

ROOT = Path(__file__).parent.parent
PREFIX = "ECKART_"


def settings_table() -> str:
    """List every environment variable once."""
    fields: dict[str, Any] = {}
    for kind in (ServiceSettings, WorkerSettings):
        fields |= _fields(kind)
    rows = [f"| `{PREFIX}{name.upper()}` | {value} | {text} |" for name, (value, text) in fields.items()]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def _fields(kind: type[BaseSettings]) -> dict[str, tuple[str, str]]:
    return {
        name: ("" if field.default in {None, ""} else f"`{field.default}`", str(field.description))
        for name, field in kind.model_fields.items()
    }


def operations_table() -> str:
    """List every operation with its summary."""
    paths = create_app(ServiceSettings(redis_url="redis://nowhere")).openapi()["paths"]
    rows = [
        f"| `{method.upper()} {path}` | {operation['summary']} |"
        for path, operations in paths.items()
        for method, operation in operations.items()
    ]
    return "\n".join(["| request | does |", "|---|---|", *rows])


def problems_table() -> str:
    """List every kind of problem with its status."""
    kinds = sorted(ProblemKind, key=lambda kind: (kind.status, kind.value))
    rows = [f"| {kind.status} | `{kind.value}` | {kind.title}. |" for kind in kinds]
    return "\n".join(["| status | kind | meaning |", "|---|---|---|", *rows])


def reasons_table() -> str:
    """List every reason to keep a layer dense."""
    rows = [f"| `{reason}` | {text} |" for reason, text in KEPT_REASONS.items()]
    return "\n".join(["| reason | meaning |", "|---|---|", *rows])


def rules_table() -> str:
    """List every rule by which a tensor is not selected, but for those of `exclude`."""
    rows = [f"| `{rule}` | {text} |" for rule, text in NOT_SELECTED.items()]
    return "\n".join(["| rule | meaning |", "|---|---|", *rows])


def client_schema(_text: str) -> str:
    """Return what the client knows of the spec and of the reasons to keep a layer dense."""
    content = {"spec": CompressionSpec.model_json_schema(), "reasons": KEPT_REASONS}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def ui_reasons(_text: str) -> str:
    """Return the module of the page that knows why weights stay dense, or are not selected."""
    tables = {"REASONS": KEPT_REASONS, "RULES": NOT_SELECTED}
    parts = [
        f"export const {name} = {json.dumps(table, indent=2, ensure_ascii=False)};\n"
        for name, table in tables.items()
    ]
    return "\n".join(["// Made by `make docs` from schemas/report.py.\n", *parts])


def client_report_page(_text: str) -> str:
    """Return the client's copy of the module that fills the report's page."""
    text = (ROOT / "schemas" / "report_page.py").read_text()
    note = "The client has a copy of this module"
    head, found, rest = text.partition(note)
    assert found
    _, _, body = rest.partition("\n")
    _, _, body = body.partition('"""')
    return (
        f'{head}A copy of schemas/report_page.py, made by `make docs`: the client shares no code.\n"""{body}'
    )


def fresh(text: str) -> str:
    """Return a page with its generated parts made anew."""
    makers = {
        "settings": settings_table,
        "operations": operations_table,
        "problems": problems_table,
        "reasons": reasons_table,
        "rules": rules_table,
    }
    for name, make in makers.items():
        pattern = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if pattern.search(text):
            table = make()
            text = pattern.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    return text


def generated() -> dict[Path, Callable[[str], str]]:
    """Map every file with generated parts to what makes its text from its old text."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {
        **dict.fromkeys(pages, fresh),
        ROOT / "service" / "ui" / "reasons.js": ui_reasons,
        ROOT / "eckart" / "schema.json": client_schema,
        ROOT / "eckart" / "report.html": lambda _text: report_template(),
        ROOT / "eckart" / "report_page.py": client_report_page,
    }


def main(*, check: bool) -> int:
    """Rewrite what is stale, or name it."""
    stale = False
    # Each is written before the next is made, which may read it.
    for path, make in generated().items():
        old = path.read_text() if path.exists() else ""
        if (new := make(old)) == old:
            continue
        stale = True
        if not check:
            path.write_text(new)
        sys.stderr.write(f"{path.relative_to(ROOT)} {'is stale: run make docs' if check else 'rewritten'}\n")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv))
