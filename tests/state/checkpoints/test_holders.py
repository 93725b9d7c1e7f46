"""state/checkpoints/holders.py: which checkpoints hold a file is known without reading manifests."""

import pytest

from state.checkpoints.holders import Holders
from state.data_dir import DataDir

SHA, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def holders(tmp_path):
    return Holders(DataDir(tmp_path))


def test_the_last_holder_is_told(holders):
    holders.add(SHA, "a")
    holders.add(SHA, "b")
    holders.add(SHA, "b")

    assert not holders.remove(SHA, "a")
    assert holders.remove(SHA, "b")
    assert holders.remove(SHA, "b")
    assert holders.remove(OTHER, "a")


def test_owners_hold_what_is_theirs(tmp_path, holders):
    alice = Holders(DataDir(tmp_path, "alice"))
    holders.add(SHA, "a")
    alice.add(SHA, "a")

    assert alice.remove(SHA, "a")
    assert not holders.remove(SHA, "b")


def test_entries_are_corrected_by_what_the_manifests_name(tmp_path, holders):
    alice = Holders(DataDir(tmp_path, "alice"))
    alice.add(SHA, "c")
    holders.add(SHA, "a")
    holders.add(SHA, "gone")
    holders.correct({(SHA, "a"), (OTHER, "a")})
    alice.correct({(SHA, "c"), (SHA, "d")})

    assert holders.remove(SHA, "a")
    assert holders.remove(OTHER, "a")
    assert not alice.remove(SHA, "c")
    assert alice.remove(SHA, "d")
