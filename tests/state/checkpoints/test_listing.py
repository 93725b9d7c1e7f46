"""state/checkpoints/listing.py: pages show every checkpoint of an owner once, the latest first."""

import os
import random
import sys

import pytest

from state.checkpoints.listing import list_checkpoints
from state.checkpoints.timeline import Timeline, stored_us
from state.data_dir import DataDir


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


def in_order(paths):
    """Return the ids by the times of their manifests, the latest first."""
    names = [folder.name for folder in paths.checkpoints.iterdir()]
    return sorted(names, key=lambda name: (stored_us(paths, name), name), reverse=True)


class Disturbed:
    """Does what clients do, and what killed processes, backups and repairs by hand leave of it."""

    def __init__(self, paths, store_file, checkpoints, seed):
        self.paths, self.checkpoints, self.store_file = paths, checkpoints, store_file
        self.timeline = Timeline(paths)
        self.chance = random.Random(seed)
        self.number = 0

    def stored(self):
        return [folder.name for folder in self.paths.checkpoints.iterdir()]

    def store(self):
        self.number += 1
        self.store_file(f"m{self.number}", "model.safetensors")

    def delete(self):
        self.checkpoints.delete(self.chance.choice(self.stored()))

    def another_time(self):
        time_s = self.chance.randrange(10**9)
        os.utime(self.paths.manifest(self.chance.choice(self.stored())), (time_s, time_s))

    def lacking(self):
        entries = list(self.timeline.latest_first())
        if entries:
            self.timeline.remove(*self.chance.choice(entries))

    def extra(self):
        name = self.chance.choice([*self.stored(), "gone"])
        self.timeline.add(self.chance.randrange(10**16), name)

    def disturb(self):
        for _ in range(self.chance.randrange(1, 6)):
            self.chance.choice([self.store, self.another_time, self.lacking, self.extra])()
        self.store()
        if self.number > 3:
            self.delete()


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_timeline_lacks_or_has_too_many_pages_are_true_and_soon_whole(
    paths, store_file, checkpoints, seed
):
    disturbed = Disturbed(paths, store_file, checkpoints, seed)
    disturbed.store()
    for _ in range(4):
        disturbed.disturb()
        # Before the next reconciliation some may be left out, but none is gone, shown twice or out of order.
        shown = [name for page in pages(paths, limit=2) for name in page]
        assert shown == [name for name in in_order(paths) if name in shown]
        checkpoints.correct_lists()
        assert [name for page in pages(paths, limit=2) for name in page] == in_order(paths)
        assert checkpoints.correct_lists() == 0


def test_what_an_earlier_release_stored_is_listed_at_once(paths, store_file):
    for name in "abc":
        store_file(name, "model.safetensors")
    timeline = Timeline(paths)
    for entry in list(timeline.latest_first()):
        timeline.remove(*entry)
    store_file("d", "model.safetensors")

    assert pages(paths, 9) == [["d", "c", "b", "a"]]


def test_a_deleted_checkpoint_leaves_nothing_in_the_timeline(paths, store_file, send, checkpoints):
    store_file("a", "model.safetensors")
    send("a", "notes.txt", b"some")
    assert [name for _, name in Timeline(paths).latest_first()] == ["a"]
    checkpoints.delete("a")
    assert [*paths.timeline.rglob("*")] == []


def test_a_file_that_cannot_be_entered_is_stored_all_the_same(paths, store_file, checkpoints, caplog):
    paths.timeline.write_text("in the way")
    store_file("a", "model.safetensors")
    assert checkpoints.exists("a")
    assert "in no list before the next reconciliation" in caplog.text

    paths.timeline.unlink()
    assert pages(paths, 9) == [["a"]]


LOOKED = []
LOOKS = {"open", "os.listdir", "os.scandir"}
sys.addaudithook(lambda event, arguments: LOOKED.append(arguments) if event in LOOKS else None)


def test_a_page_costs_no_look_at_the_checkpoints_that_it_does_not_show(paths, store_file):
    costs = []
    for count in (6, 12):
        for number in range(count):
            store_file(f"m{number}", "model.safetensors")
            os.utime(paths.manifest(f"m{number}"), (number, number))
        Timeline(paths).correct()
        LOOKED.clear()
        page = list_checkpoints(paths, limit=3)
        costs.append(len(LOOKED))
        assert [each.id for each in page.checkpoints] == [f"m{count - 1 - number}" for number in range(3)]

    assert costs[0] == costs[1]
