"""A file is published whole or not at all, whatever happens to its writers."""

import hashlib
import subprocess
import sys

import pytest

from worker.checkpoint.part import PartFile


def names_in(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("durable", [True, False])
def test_a_block_that_ends_well_publishes_what_it_wrote(tmp_path, durable):
    path = tmp_path / "model.safetensors"
    with PartFile(path, durable=durable) as part:
        part.write(b"first, ")
        part.write(memoryview(b"second"))
        assert names_in(tmp_path) == ["model.safetensors.part"]
    assert path.read_bytes() == b"first, second"
    written = part.written()
    assert (written.name, written.size_bytes) == ("model.safetensors", 13)
    assert written.sha256 == hashlib.sha256(b"first, second").hexdigest()
    assert names_in(tmp_path) == [path.name]


def test_what_a_killed_process_left_is_taken_away(tmp_path):
    path = tmp_path / "model.safetensors"
    (tmp_path / "model.safetensors.part").write_bytes(b"half of a longer file")
    with PartFile(path) as part:
        part.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert names_in(tmp_path) == [path.name]


def test_a_part_file_that_is_taken_away_is_not_published(tmp_path):
    path = tmp_path / "model.safetensors"
    part = PartFile(path)
    part.__enter__()
    (tmp_path / "model.safetensors.part").unlink()
    with pytest.raises(FileExistsError, match="Another process"):
        part.__exit__(None, None, None)
    assert names_in(tmp_path) == []


def test_of_two_writers_the_later_one_wins(tmp_path):
    path = tmp_path / "model.safetensors"
    first = PartFile(path)
    first.__enter__()
    first.write(b"first")
    with PartFile(path) as second:
        second.write(b"second")
        with pytest.raises(FileExistsError, match="Another process"):
            first.__exit__(None, None, None)
    assert path.read_bytes() == b"second"
    assert names_in(tmp_path) == [path.name]


def test_an_earlier_writer_that_fails_leaves_the_later_one_alone(tmp_path):
    path = tmp_path / "model.safetensors"
    first = PartFile(path)
    first.__enter__()
    with PartFile(path) as second:
        second.write(b"second")
        first.__exit__(OSError, OSError("gave up"), None)
    assert path.read_bytes() == b"second"


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from worker.checkpoint.part import PartFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
with PartFile(Path(sys.argv[1])) as part:
    for _ in range(5):
        part.write(bytes(500_000))
"""


def test_a_full_disk_leaves_no_part_file(tmp_path):
    """The limit on a file's size stands for the disk's."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "model.safetensors")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "OSError: [Errno 27]" in ended.stderr
    assert names_in(tmp_path) == []
