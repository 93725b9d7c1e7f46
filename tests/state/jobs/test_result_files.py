"""state/jobs/result_files.py: the digests of a result's files, with and without a file of their own."""

import hashlib
import json

import pytest

from schemas.checkpoint import FileInfo
from state.errors import UnreadableRecord
from state.jobs.result_files import DIGESTS_NAME, read_digests, write_digests

FILE = FileInfo(name="model.safetensors", size_bytes=1, sha256="0" * 64)


@pytest.fixture
def result(tmp_path):
    report = {"from": {"the": "future"}, "output": {"files": [FILE.model_dump() | {"new": 1}], "new": 2}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    return tmp_path


@pytest.fixture
def expected(result):
    own = hashlib.sha256((result / "report.json").read_bytes()).hexdigest()
    return [(FILE.name, FILE.sha256), ("report.json", own)]


def test_the_digests_need_no_report(result, expected):
    write_digests(result, [FILE])
    (result / "report.json").write_text("damaged")
    assert list(read_digests(result).items()) == expected


@pytest.mark.parametrize("text", [None, "", "[]", '{"a": 1}'])
def test_a_result_without_a_file_of_digests_has_those_of_its_report(result, expected, text):
    if text is not None:
        (result / DIGESTS_NAME).write_text(text)
    assert list(read_digests(result).items()) == expected


@pytest.mark.parametrize("text", ["", "{", "{}", '{"output": {"files": [{}]}}'])
def test_a_result_without_digests_is_unreadable(result, text):
    (result / "report.json").write_text(text)
    with pytest.raises(UnreadableRecord):
        read_digests(result)
