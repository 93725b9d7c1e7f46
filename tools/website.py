"""The documentation as a site of static files: `make site` leaves it in build/site/.

The pages are copied, with their links turned to where the copies are, and the tool builds from the copies.
What the navigation shows is what docs/README.md links, in its order.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from service.app import create_app
from service.settings import Settings
from tools.pins import ROOT, pins, tool

ZENSICAL = "zensical==0.0.73"
# ruff, of the version that formats the code, breaks the lines of long signatures.
PLUGINS = ("mkdocs==1.6.1", "mkdocstrings==1.0.8", "mkdocstrings-python==2.0.11", f"ruff=={pins()['ruff']}")
DOCS = ROOT / "docs"
BUILD = ROOT / "build"
PROJECT = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
# What the reference shows: a page, what is on it, and its title.
PYTHON = {
    # The function has the name of its module, which would hide it.
    "python/eckart.md": (("eckart", "eckart.calibrate.calibrate"), "Client and calibration"),
    "python/types.md": (("eckart.types",), "Answers of the service"),
    "python/torch.md": (("eckart.torch",), "Results in torch"),
    "python/train.md": (("eckart.train",), "Training for low rank"),
    "python/transformers.md": (("eckart.transformers",), "Results in transformers"),
    "python/lowrank.md": (("worker.lowrank",), "Numerics of the worker"),
}
# What of a docstring is shown, and how.
DOCSTRINGS = {
    "docstring_style": "numpy",
    "filters": ["!^_"],
    "heading_level": 2,
    "line_length": 90,
    "members_order": "source",
    "merge_init_into_class": True,
    "separate_signature": True,
    "show_if_no_docstring": True,
    "show_root_heading": True,
    "show_signature_annotations": True,
    "show_source": False,
}
REFERENCE = """# Reference

- HTTP: [all operations and problems](2-http.md), and for programs [openapi.json](openapi.json).
- The spec of a job: [all fields and rules](3-spec.md), and for programs [schema.json](schema.json).
- Python: {python}.

The pages about Python are made from the docstrings.
"""


def places() -> dict[Path, str]:
    """Return where in the site each page and picture of the repository is."""
    inside = [path for path in sorted(DOCS.rglob("*")) if path.suffix in {".md", ".svg", ".png"}]
    found = {path: path.relative_to(DOCS).as_posix() for path in inside}
    at_the_root = {ROOT / name: name for name in PROJECT}
    # Two pages are a README.md; a site has one first page.
    return found | at_the_root | {ROOT / "README.md": "index.md", DOCS / "README.md": "contents.md"}


def copied(page: Path, to: dict[Path, str]) -> str:
    """Return the text of a page with each link turned to the place of what it names."""
    here = Path(to[page]).parent

    def turned(link: re.Match[str]) -> str:
        target = to.get((page.parent / link[1]).resolve())
        return link[1] if target is None else Path(os.path.relpath(target, here)).as_posix()

    return LINK.sub(turned, page.read_text())


def title(page: Path) -> str:
    """Return the title of a page, as plain text."""
    return page.read_text().partition("\n")[0].removeprefix("# ").replace("`", "")


def navigation() -> list[dict[str, Any]]:
    """Return what the navigation shows."""
    linked = [DOCS / link for link in dict.fromkeys(LINK.findall((DOCS / "README.md").read_text()))]
    pages = [page for page in linked if page.parent == DOCS]
    decisions = [page for page in linked if page.parent == DOCS / "decisions" and page.stem != "template"]
    to = places()
    return [
        {"Eckart": "index.md"},
        {"Guide": [{"All pages": "contents.md"}, *({title(page): to[page]} for page in pages)]},
        {"Reference": [{"Overview": "reference.md"}, *({name: at} for at, (_, name) in PYTHON.items())]},
        {"Project": [{title(ROOT / name): name} for name in PROJECT]},
        {
            "Decisions": [
                *({title(page): to[page]} for page in decisions),
                {"Template": "decisions/template.md"},
            ]
        },
    ]


def write_pages(stage: Path) -> None:
    """Write all pages and files that the site is built from."""
    to = places()
    for source, name in to.items():
        target = stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            target.write_text(copied(source, to))
        else:
            shutil.copyfile(source, target)
    for name, (objects, heading) in PYTHON.items():
        (stage / name).parent.mkdir(exist_ok=True)
        docstrings = "\n\n".join(f"::: {name}" for name in objects)
        (stage / name).write_text(f"# {heading}\n\n{docstrings}\n")
    python = ", ".join(f"[{objects[0]}]({name})" for name, (objects, _) in PYTHON.items())
    (stage / "reference.md").write_text(REFERENCE.format(python=python))
    openapi = create_app(Settings(redis_url="redis://nowhere")).openapi()
    (stage / "openapi.json").write_text(json.dumps(openapi, indent=1) + "\n")
    shutil.copyfile(ROOT / "eckart" / "schema.json", stage / "schema.json")


def lost_links(stage: Path) -> list[str]:
    """Return each link between the pages, or to a picture or file, that leads nowhere."""
    return [
        f"{page.relative_to(stage)}: {link}"
        for page in sorted(stage.rglob("*.md"))
        for link in LINK.findall(CODE.sub("", page.read_text()))
        if not (page.parent / link).is_file()
    ]


def left_out(stage: Path) -> set[str]:
    """Return the pages that the navigation does not show."""
    pages = {page.relative_to(stage).as_posix() for page in stage.rglob("*.md")}
    return pages - _targets(navigation())


def _targets(entries: list[dict[str, Any]]) -> set[str]:
    found = set()
    for entry in entries:
        for shown in entry.values():
            found |= {shown} if isinstance(shown, str) else _targets(shown)
    return found


def configuration() -> dict[str, Any]:
    """Return the tool's configuration; no page asks another host for a font, a script or a picture."""
    python = {"paths": [str(ROOT)], "options": DOCSTRINGS}
    return {
        "site_name": "Eckart",
        "site_description": "Makes model checkpoints smaller by low rank",
        "docs_dir": "pages",
        "site_dir": "site",
        "use_directory_urls": False,  # The pages can be read without a server; search needs one.
        "nav": navigation(),
        "theme": {
            "name": "material",
            "font": False,
            "features": ["navigation.tabs", "navigation.top", "toc.follow", "search.highlight"],
            "palette": [_palette("light", "default", "dark"), _palette("dark", "slate", "light")],
        },
        # Not the fence of mermaid: its diagrams are drawn by a script from another host.
        "markdown_extensions": [
            "attr_list",
            "pymdownx.highlight",
            "pymdownx.superfences",
            "tables",
            {"toc": {"permalink": True}},
        ],
        "plugins": ["search", {"mkdocstrings": {"handlers": {"python": python}}}],
        "validation": {"invalid_links": True, "invalid_link_anchors": True, "unresolved_references": False},
    }


def _palette(name: str, scheme: str, other: str) -> dict[str, Any]:
    """Return the colours of those who prefer them, with a switch to the others."""
    icon = {"light": "lucide/sun", "dark": "lucide/moon"}[name]
    toggle = {"icon": icon, "name": f"Switch to {other}"}
    return {"media": f"(prefers-color-scheme: {name})", "scheme": scheme, "toggle": toggle}


def main() -> None:
    """Build the site; a broken link or a page outside the navigation fails."""
    stage = BUILD / "pages"
    for old in (stage, BUILD / "site"):
        shutil.rmtree(old, ignore_errors=True)
    write_pages(stage)
    # The tool checks links to pages and their headings, but neither pictures nor what the navigation lacks.
    if wrong := [*lost_links(stage), *left_out(stage)]:
        raise SystemExit("links that lead nowhere, and pages without a place:\n" + "\n".join(wrong))
    config = BUILD / "mkdocs.yml"
    config.write_text(json.dumps(configuration(), indent=1))  # JSON is YAML
    command = [*tool(ZENSICAL, "zensical", *PLUGINS), "build", "--strict", "--config-file", str(config)]
    subprocess.run(command, cwd=BUILD, check=True)
    print((BUILD / "site" / "index.html").relative_to(ROOT))


if __name__ == "__main__":
    main()
