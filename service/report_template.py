"""The template of the page that shows one report: modules and styles of `ui/` in one file.

`make docs` keeps a copy in eckart/report.html, for those who have no service.
"""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

FOLDER = files("service") / "ui"
# Each module after those that it imports.
MODULES = (
    "chart-parts",
    "charts",
    "layers",
    "reasons",
    "spectrum",
    "budget",
    "diagnosis",
    "format",
    "repeat",
    "tables",
    "report",
    "report-page",
)
STYLES = ("style", "report")
IMPORT = re.compile(r'^import (\{[\w\s,]*\}) from "\./([a-z-]+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const) (\w+))", re.MULTILINE)
MODULE_WORD = re.compile(r"^\s*(?:import|export)\b", re.MULTILINE)
POLICY = re.compile(r'http-equiv="Content-Security-Policy" content="([^"]*)"')


@cache
def report_template() -> str:
    """Return the page with a mark where the report belongs."""
    script = _script()
    style = "\n".join(_read(f"{name}.css") for name in STYLES)
    # Data URLs: the icon, which is empty, so that browsers ask for none.
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _read("report-page.html")
    for name, text in {"policy": policy, "style": style, "script": script}.items():
        before, _, after = page.partition(f"{{{name}}}")
        page = before + text + after
    return page


@cache
def report_policy() -> str:
    """Return the policy of the page for its header, which also keeps other pages from framing it."""
    found = POLICY.search(report_template())
    assert found is not None
    return f"{found[1]}; frame-ancestors 'none'"


def _script() -> str:
    """Join the modules: each is a function that returns its exports, after those that it imports."""
    parts = ['"use strict";', "const modules = {};"]
    for at, name in enumerate(MODULES):
        text = _read(f"{name}.js")
        late = {module for _, module in IMPORT.findall(text)} - set(MODULES[:at])
        body = EXPORT.sub("", IMPORT.sub(r'const \1 = modules["\2"];', text))
        if late or MODULE_WORD.search(body) or "</script" in body or "<!--" in body:
            raise ValueError(f"service/ui/{name}.js cannot be joined with the others")
        exports = ", ".join(EXPORT.findall(text))
        parts.append(f'modules["{name}"] = (() => {{\n{body}return {{ {exports} }};\n}})();')
    return "\n".join([*parts, ""])


def _read(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
