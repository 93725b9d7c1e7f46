"""state/checkpoints/listing.py: pages show every checkpoint of an owner once, the latest first."""

import os

import pytest

from state.checkpoints.listing import list_checkpoints
from state.data_dir import DataDir
from state.errors import BadCursor


@pytest.fixture
def paths(tmp_path):
    return DataDir(tmp_path)


def pages(paths, limit):
    """Return the ids on each page."""
    found, cursor = [], None
    while True:
        page = list_checkpoints(paths, limit=limit, cursor=cursor)
        found.append([each.id for each in page.checkpoints])
        cursor = page.next_cursor
        if cursor is None:
            return found


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (50, [5])])
def test_pages_show_each_checkpoint_once_the_latest_first(paths, store_file, limit, sizes):
    # Two of one time, as a restored backup may have them.
    for name, time_s in zip("abcde", (30, 10, 20, 20, 40), strict=True):
        store_file(name, "model.safetensors")
        os.utime(paths.manifest(name), (time_s, time_s))

    assert [len(page) for page in pages(paths, limit)] == sizes
    assert [name for page in pages(paths, limit) for name in page] == ["e", "a", "d", "c", "b"]


def test_a_checkpoint_is_described(paths, store_file, send):
    whole = store_file("whole", "model.safetensors")
    part = store_file("part", "model-00001-of-00002.safetensors")
    send("part", "notes.txt", b"some")

    latest, first = list_checkpoints(paths, limit=9).checkpoints
    assert (first.id, first.files, first.complete, first.bytes) == ("whole", (whole,), True, whole.size_bytes)
    assert (latest.id, latest.complete, latest.bytes) == ("part", False, part.size_bytes + 4)
    assert latest.stored_at >= first.stored_at


def test_a_checkpoint_that_goes_between_two_pages_is_left_out(paths, store_file, checkpoints):
    for name in "abc":
        store_file(name, "model.safetensors")
    first = list_checkpoints(paths, limit=1)
    following = first.next_cursor.partition("-")[2]
    checkpoints.delete(following)

    rest = list_checkpoints(paths, limit=9, cursor=first.next_cursor)
    assert {each.id for each in rest.checkpoints} == set("abc") - {first.checkpoints[0].id, following}


def test_owners_see_their_own(paths, checkpoints, store_file, tmp_path):
    store_file("mine", "model.safetensors")

    assert pages(DataDir(tmp_path, "alice"), 9) == [[]]
    assert pages(paths, 9) == [["mine"]]


@pytest.mark.parametrize("cursor", ["", "12", "-a", "12-", "12-../x", "x-a", "1" * 17 + "-a"])
def test_another_cursor_is_refused(paths, cursor):
    with pytest.raises(BadCursor, match="a list of checkpoints; start again without it"):
        list_checkpoints(paths, limit=1, cursor=cursor)
