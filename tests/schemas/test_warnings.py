"""The list of warnings in docs/3-spec.md holds every text that the code can write, and no other."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Where warnings are written; of functions that write other texts too, how the warnings begin.
WRITTEN = {
    ("schemas/format/files.py", "_missing_subfolders"): "",
    ("schemas/format/index.py", "index_warnings"): "",
    ("schemas/planning/calibration.py", "_warnings"): "",
    ("schemas/planning/difference.py", "check_base"): "base: ",
    ("schemas/planning/distortion.py", "objective_warnings"): "",
    ("schemas/planning/left_out.py", "left_out_warnings"): "",
    ("schemas/planning/mlp_widths.py", "with_widths"): "config.json ",
    ("schemas/planning/model_folder.py", "folder_config"): "",
    ("schemas/planning/override_warnings.py", "override_warnings"): "",
    ("schemas/planning/pairs.py", "_known"): "pairs: ",
    ("schemas/planning/planner.py", "_budget_warnings"): "",
    ("schemas/planning/planner.py", "_rank_warnings"): "",
    ("schemas/planning/planner.py", "_warnings"): "",
    ("schemas/planning/planner.py", "make_plan"): "metadata: ",
    ("schemas/warning.py", "first_warnings"): "",
    ("service/uploads/form.py", "warnings"): "",
    ("worker/calibration.py", "_scarcity"): "",
    ("worker/left_out.py", "_warnings"): "",
    ("worker/report.py", "_late_warnings"): "",
}
# These only hand on what the others write, or log.
HANDED_ON = {("schemas/format/files.py", "warnings")}
PACKAGES = ("schemas", "service", "state", "worker")
# A warning is put together of so many texts, between two values, at most.
MOST_SEGMENTS = 3
NAMED_SO = re.compile(r"(?:^|_)warnings$")


def functions():
    """Yield each function of the packages, by its file and its name."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    yield (str(path.relative_to(ROOT)), node.name), node


def strings(function):
    """Yield the strings of a function, each as the parts between its values."""
    documentation = ast.get_docstring(function, clean=False)
    inside = {
        id(part) for node in ast.walk(function) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.JoinedStr):
            yield [part.value for part in node.values if isinstance(part, ast.Constant)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield from [[node.value]] if node.value != documentation else []


def is_text(part):
    """Whether a part is words, and not a key, a name or punctuation."""
    return len(part.split()) >= 2


def segments(part, written):
    """Return into how many pieces of what is written a part falls, each as long as can be."""
    number = 0
    while part:
        length = next((n for n in range(len(part), 0, -1) if part[:n] in written), 1)
        part, number = part[length:], number + 1
    return number


FUNCTIONS = defaultdict(list)
for found, node in functions():
    FUNCTIONS[found].append(node)


@pytest.fixture(scope="module")
def listed():
    """Return the section of the documentation."""
    _, _, rest = (ROOT / "docs" / "3-spec.md").read_text().partition("\n## Warnings\n")
    return rest.partition("\n## ")[0]


@pytest.mark.parametrize("place", WRITTEN, ids="-".join)
def test_every_text_that_is_written_is_listed(listed, place):
    begin = WRITTEN[place]
    parts = [
        part.replace("`", "").strip(" '")
        for function in FUNCTIONS[place]
        for text in strings(function)
        if "".join(text).startswith(begin)
        for part in text
        if is_text(part)
    ]

    assert parts
    assert [part for part in parts if part not in listed.replace("`", "")] == []


def test_every_text_that_is_listed_is_written(listed):
    written = "\n".join(
        part.replace("`", "")
        for place in WRITTEN
        for function in FUNCTIONS[place]
        for text in strings(function)
        for part in text
    )
    rows = [line.split(" | ")[0] for line in listed.splitlines() if line.startswith("| ")]
    texts = [text for row in rows for text in re.findall("`([^`]+)`", row)]
    parts = {part.strip(" ,.;:'") for text in texts for part in text.split("…")}

    assert len(texts) > 20
    assert [part for part in parts if is_text(part) and segments(part, written) > MOST_SEGMENTS] == []


def test_no_other_function_writes_warnings():
    named = {place for place in FUNCTIONS if NAMED_SO.search(place[1])}

    assert named - HANDED_ON - set(WRITTEN) == set()
