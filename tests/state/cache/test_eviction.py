"""cache/eviction.py: the cache stays within its limits, and the least recently used goes first."""

import shutil
import sys
import time
from dataclasses import replace

import pytest

from state.cache.eviction import make_room
from state.cache.store import DecompositionCache
from tests.state.decompositions import KEY, SIZE, example, files, folders, numbered, read


def test_the_least_recently_used_goes_first(make_cache, source, tmp_path):
    keys, cache = numbered(4), make_cache(limit_bytes=3 * SIZE)
    for key in keys[:3]:
        cache.put(key, *example(key), sources=[source])
        time.sleep(0.01)
    cache.open(keys[0]).close()
    cache.put(keys[3], *example(keys[3]), sources=[source])

    assert [cache.open(key) is not None for key in keys] == [True, False, True, True]


def test_it_never_takes_more_than_its_limit(make_cache, source, tmp_path):
    cache = make_cache(limit_bytes=3 * SIZE + SIZE // 2)
    for key in numbered(10):
        assert cache.put(key, *example(key), sources=[source])
        assert sum(path.stat().st_size for path in (tmp_path / "decompositions").glob("*/*")) <= 3.5 * SIZE
    assert len(files(tmp_path)) == 3


SCANNED = []
sys.addaudithook(lambda event, arguments: SCANNED.append(arguments) if event == "os.scandir" else None)


def test_what_is_stored_does_not_cost_a_look_at_all_that_is_there(make_cache, source):
    cache = make_cache(limit_bytes=1 << 30)
    first, *others = numbered(20)
    cache.put(first, *example(first), sources=[source])
    SCANNED.clear()
    assert all(cache.put(key, *example(key), sources=[source]) for key in others)

    assert SCANNED == []


def test_from_a_full_cache_more_is_evicted_than_one_needs(make_cache, source, tmp_path):
    keys = numbered(40)
    for key in keys[:32]:
        make_cache(limit_bytes=32 * SIZE).put(key, *example(key), sources=[source])
    time.sleep(0.01)
    cache = make_cache(limit_bytes=32 * SIZE)
    found = []
    for key in keys[32:]:
        SCANNED.clear()
        assert cache.put(key, *example(key), sources=[source])
        looked = bool(SCANNED)
        found.append((len(files(tmp_path)), looked))

    assert found == [(30, True), (31, False), (32, False)] * 2 + [(30, True), (31, False)]
    assert [cache.open(key) is not None for key in keys] == [False] * 9 + [True] * 31


def test_what_the_job_itself_stored_is_not_evicted_beyond_need(make_cache, source, tmp_path):
    cache = make_cache(limit_bytes=32 * SIZE)
    for key in numbered(40):
        cache.put(key, *example(key), sources=[source])

    assert len(files(tmp_path)) == 32


@pytest.mark.parametrize("text", ["", "many", str(1 << 40), "9" * 40])
def test_a_wrong_count_of_bytes_is_corrected(make_cache, source, tmp_path, text):
    cache = make_cache(limit_bytes=3 * SIZE)
    one, two = numbered(2)
    cache.put(one, *example(one), sources=[source])
    (tmp_path / "decompositions" / ".used").write_text(text)

    assert cache.put(two, *example(two), sources=[source])
    assert len(files(tmp_path)) == 2
    assert int((tmp_path / "decompositions" / ".used").read_text()) == 2 * SIZE


def test_it_never_takes_more_than_it_leaves_free(tmp_path):
    free_bytes = shutil.disk_usage(tmp_path).free

    assert make_room(tmp_path, free_bytes // 4, limit_bytes=1 << 62)
    assert not make_room(tmp_path, free_bytes * 3 // 4, limit_bytes=1 << 62)
    assert not make_room(tmp_path, free_bytes // 4, limit_bytes=1 << 62, spare_bytes=free_bytes * 3 // 4)


@pytest.mark.parametrize("limit_bytes", [0, SIZE - 1])
def test_a_decomposition_over_the_limit_evicts_nothing(make_cache, source, tmp_path, limit_bytes):
    small = replace(KEY, shape=(300, 1))
    cache = make_cache(limit_bytes=limit_bytes)
    kept = cache.put(small, *example(small, rows=1, length=1), sources=[source])

    assert kept == (limit_bytes > 0)
    assert not cache.put(KEY, *example(), sources=[source])
    assert len(files(tmp_path)) == kept
    assert cache.could_hold(limit_bytes)
    assert not cache.could_hold(limit_bytes + 1)


def test_a_lower_limit_holds_from_the_next_trim_on(make_cache, source, tmp_path):
    for key in numbered(4):
        make_cache().put(key, *example(key), sources=[source])
    make_cache(limit_bytes=2 * SIZE).trim()
    assert len(files(tmp_path)) == 2
    make_cache(limit_bytes=0).trim()
    assert folders(tmp_path) == []


@pytest.mark.parametrize(
    ("nbytes", "left"), [(0, 3), (1, 2), (SIZE, 2), (SIZE + 1, 1), (3 * SIZE, 0), (3 * SIZE + 1, 3)]
)
def test_space_is_freed_only_if_the_cache_holds_enough(make_cache, source, tmp_path, nbytes, left):
    for key in numbered(3):
        make_cache().put(key, *example(key), sources=[source])
    make_cache().free_space(nbytes)

    assert len(files(tmp_path)) == left


def test_an_evicted_file_that_is_open_stays_readable(make_cache, source):
    cache = make_cache()
    head, basis = example()
    cache.put(KEY, head, basis, sources=[source])
    with cache.open(KEY) as file:
        make_cache(limit_bytes=0).trim()
        assert cache.open(KEY) is None
        buffer = bytearray(len(basis))
        file.read_into(memoryview(buffer))
        assert buffer == basis


def test_a_file_that_is_put_again_evicts_no_other(tmp_path):
    cache = DecompositionCache.shared(tmp_path, limit_bytes=3 * SIZE)
    keys = numbered(3)
    for key in (*keys, keys[1], keys[2]):
        assert cache.put(key, *example(key), sources=[tmp_path])

    assert all(read(cache, key) is not None for key in keys)
