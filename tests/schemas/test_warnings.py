"""The list of warnings in docs/3-spec.md holds every text that the code can write, and no other."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "service", "state", "worker")
# Functions of such names write warnings, but for these, which hand on what others write.
NAMED_SO = re.compile(r"(?:^|_)warnings$")
HANDED_ON = {("schemas/format/files.py", "warnings")}
# Functions and constants that hold warnings too, and how these begin where there are other texts.
OTHERS = {
    ("schemas/format/files.py", "_missing_subfolders"): "",
    ("schemas/planning/difference.py", "check_base"): "base: ",
    ("schemas/planning/kernels.py", "without_statistics"): "",
    ("schemas/planning/mlp_widths.py", "with_widths"): "config.json ",
    ("schemas/planning/model_folder.py", "folder_config"): "",
    ("schemas/planning/pairs.py", "_known"): "pairs: ",
    ("schemas/planning/planner.py", "CONTENT_HASHES_LEFT_OUT"): "",
    ("worker/calibration.py", "_scarcity"): "",
}
# A warning is put together of so many texts, between two values, at most.
MOST_SEGMENTS = 3


def definitions(tree):
    """Yield each function of a module, and each constant, by its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def strings(node):
    """Yield the strings of a definition, each as the parts between its values."""
    documentation = ast.get_docstring(node, clean=False) if isinstance(node, ast.FunctionDef) else None
    joined = [each for each in ast.walk(node) if isinstance(each, ast.JoinedStr)]
    inside = {id(part) for each in joined for part in ast.walk(each)}
    for each in ast.walk(node):
        if isinstance(each, ast.JoinedStr):
            yield [part.value for part in each.values if isinstance(part, ast.Constant)]
        elif isinstance(each, ast.Constant) and isinstance(each.value, str) and id(each) not in inside:
            yield from [[each.value]] if each.value != documentation else []


@pytest.fixture(scope="module")
def written():
    """Return the parts of all warnings in the code, by where they are written."""
    found = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for name, node in definitions(ast.parse(path.read_text())):
            place = (str(path.relative_to(ROOT)), name)
            is_named_so = isinstance(node, ast.FunctionDef) and NAMED_SO.search(name) is not None
            if place in OTHERS or (is_named_so and place not in HANDED_ON):
                texts = [text for text in strings(node) if "".join(text).startswith(OTHERS.get(place, ""))]
                found.setdefault(place, []).extend(part.replace("`", "") for text in texts for part in text)
    return found


@pytest.fixture(scope="module")
def listed():
    """Return the section of the documentation."""
    _, _, rest = (ROOT / "docs" / "3-spec.md").read_text().partition("\n## Warnings\n")
    return rest.partition("\n## ")[0]


def is_text(part):
    """Whether a part is words, and not a key, a name or punctuation."""
    return len(part.split()) >= 2


def test_every_text_that_is_written_is_listed(written, listed):
    plain = listed.replace("`", "")

    assert set(OTHERS) <= set(written)
    assert len(written) > len(OTHERS)
    for place, parts in written.items():
        assert any(map(is_text, parts)), place
        missing = [part for part in parts if is_text(part) and part.strip(" '") not in plain]
        assert missing == [], place


def segments(part, text):
    """Return into how many pieces of a text a part falls, each as long as can be."""
    number = 0
    while part:
        length = next((n for n in range(len(part), 0, -1) if part[:n] in text), 1)
        part, number = part[length:], number + 1
    return number


def test_every_text_that_is_listed_is_written(written, listed):
    text = "\n".join(part for parts in written.values() for part in parts)
    rows = [line.split(" | ")[0] for line in listed.splitlines() if line.startswith("| ")]
    warnings = [warning for row in rows for warning in re.findall("`([^`]+)`", row)]
    parts = {part.strip(" ,.;:'") for warning in warnings for part in warning.split("…")}

    assert len(warnings) > 20
    assert [part for part in parts if is_text(part) and segments(part, text) > MOST_SEGMENTS] == []
