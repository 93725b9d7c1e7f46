"""`state.jobs.read_last`: a file is parsed once for each of its versions, and what is kept is bounded."""

import os
from pathlib import Path

import pytest

from state.files import write_atomic
from state.jobs import read_last
from state.jobs.read_last import ReadLast


@pytest.fixture
def parsed():
    return []


@pytest.fixture
def files(parsed):
    def parse(path):
        parsed.append(Path(path).name)
        return Path(path).read_text()

    return ReadLast(parse)


def test_a_file_is_parsed_again_only_when_it_is_another_one(files, parsed, tmp_path):
    path = tmp_path / "a"
    for text in ("one", "two", "six"):  # of one length
        write_atomic(path, text.encode())
        os.utime(path, (1, 1))  # and of one time
        assert [files.get(str(path)) for _ in range(3)] == [text] * 3
    assert parsed == ["a"] * 3
    path.unlink()
    with pytest.raises(FileNotFoundError):
        files.get(str(path))


def test_a_fault_is_found_each_time(tmp_path):
    def parse(path):
        raise ValueError(path)

    files = ReadLast(parse)
    (tmp_path / "a").touch()
    for _ in range(2):
        with pytest.raises(ValueError, match="a"):
            files.get(str(tmp_path / "a"))


def test_the_files_that_were_read_last_are_kept(files, parsed, tmp_path, monkeypatch):
    monkeypatch.setattr(read_last, "MOST_FILES", 2)
    for name in "abc":
        (tmp_path / name).write_text(name)
    for name in "abacac":  # c takes the place of b
        files.get(str(tmp_path / name))
    assert parsed == ["a", "b", "c"]
    files.get(str(tmp_path / "b"))
    assert parsed == ["a", "b", "c", "b"]


def test_a_large_file_is_not_kept(files, parsed, tmp_path):
    (tmp_path / "a").write_bytes(bytes(read_last.MOST_BYTES + 1))
    files.get(str(tmp_path / "a"))
    files.get(str(tmp_path / "a"))
    assert parsed == ["a", "a"]
