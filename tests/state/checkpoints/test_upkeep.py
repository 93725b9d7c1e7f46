"""checkpoints/upkeep.py: what killed processes leave is swept, and nothing else."""

import os
import stat

import pytest


def test_a_deletion_that_was_killed_is_finished_by_the_sweep(checkpoints, tmp_path):
    (tmp_path / "trash" / "0123" / "deep").mkdir(parents=True)
    assert checkpoints.sweep_parts(-1) == 1
    assert not any((tmp_path / "trash").iterdir())


@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.mkdir(),
        lambda path: path.symlink_to(path),
        os.mkfifo,
        lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK),
    ],
    ids=["a directory", "a link to itself", "a pipe", "a socket"],
)
def test_what_is_no_temporary_file_stays_and_the_rest_is_swept(checkpoints, tmp_path, put):
    folder = tmp_path / "parts"
    folder.mkdir()
    put(folder / "a.part")
    for name in ("0.part", "b.part"):
        (folder / name).write_bytes(b"left over")
    assert checkpoints.sweep_parts(-1) == 2
    assert [path.name for path in folder.iterdir()] == ["a.part"]


def test_a_sweep_of_nothing_finds_nothing(checkpoints):
    assert checkpoints.sweep_parts(-1) == 0
