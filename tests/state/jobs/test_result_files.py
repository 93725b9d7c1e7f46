"""state/jobs/result_files.py: sizes and digests of a result's files, with a file of their own and without."""

import hashlib
import json

import pytest

from schemas.checkpoint import FileInfo
from state.errors import UnreadableRecord
from state.jobs.result_files import CONTENTS_NAME, ResultContent, read_contents, write_contents

FILE = FileInfo(name="model.safetensors", size_bytes=1, sha256="0" * 64)


@pytest.fixture
def result(tmp_path):
    report = {"from": {"the": "future"}, "output": {"files": [FILE.model_dump() | {"new": 1}], "new": 2}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    return tmp_path


@pytest.fixture
def expected(result):
    text = (result / "report.json").read_bytes()
    own = ResultContent(sha256=hashlib.sha256(text).hexdigest(), size_bytes=len(text))
    return [(FILE.name, ResultContent(sha256=FILE.sha256, size_bytes=1)), ("report.json", own)]


def test_the_contents_need_no_report(result, expected):
    write_contents(result, [FILE])
    (result / "report.json").write_text("damaged")
    assert list(read_contents(result).items()) == expected


@pytest.mark.parametrize("text", [None, "", "[]", '{"a": 1}'])
def test_a_result_without_a_file_of_contents_has_those_of_its_report(result, expected, text):
    if text is not None:
        (result / CONTENTS_NAME).write_text(text)
    assert list(read_contents(result).items()) == expected


@pytest.mark.parametrize("report", ["as written", "changed", "damaged", "gone"])
def test_what_an_earlier_release_recorded_has_the_sizes_of_the_report_that_it_names(result, expected, report):
    digests = {name: content.sha256 for name, content in expected}
    (result / CONTENTS_NAME).write_text(json.dumps(digests))
    text = (result / "report.json").read_text()
    (result / "report.json").write_text({"changed": text + " ", "damaged": text[:9]}.get(report, text))
    if report == "gone":
        (result / "report.json").unlink()
    found = read_contents(result)
    assert {name: content.sha256 for name, content in found.items()} == digests
    sizes = [content.size_bytes if report == "as written" else None for _, content in expected]
    assert [content.size_bytes for content in found.values()] == sizes


@pytest.mark.parametrize("text", ["", "{", "{}", '{"output": {"files": [{}]}}'])
def test_a_result_without_digests_is_unreadable(result, text):
    (result / "report.json").write_text(text)
    with pytest.raises(UnreadableRecord):
        read_contents(result)
