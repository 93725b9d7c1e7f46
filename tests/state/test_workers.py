"""state/workers.py: a worker is alive until its entry expires."""

import pytest

from state.errors import RedisUnavailable
from state.redis import redis_client
from state.workers import WorkerRegistry


@pytest.fixture
def registry(redis_server):
    with redis_client(redis_server.url) as client:
        yield WorkerRegistry(client)


def test_a_worker_is_alive_until_its_beat_expires(registry):
    registry.refresh("b", 60)
    registry.refresh("a", 60)
    registry.refresh("late", 0)
    assert registry.alive() == ["a", "b"]
    registry.refresh("a", 0)
    assert registry.alive() == ["b"]


def test_a_worker_that_leaves_is_gone_at_once(registry):
    registry.refresh("a", 60)
    registry.leave("a")
    registry.leave("never-there")
    assert registry.alive() == []


def test_dead_workers_are_not_kept(registry, redis_server):
    registry.refresh("dead", 0)
    registry.refresh("a", 60)
    assert redis_server.client().zrange("eckart:workers", 0, -1) == ["a"]


def test_the_memory_of_the_largest_worker_is_known_once_all_have_said_theirs(registry, redis_server):
    assert registry.largest_memory_bytes() is None
    registry.refresh("a", 60, memory_bytes=5)
    registry.refresh("b", 60, memory_bytes=7)
    assert registry.largest_memory_bytes() == 7
    registry.refresh("older", 60)
    assert registry.largest_memory_bytes() is None
    registry.leave("older")
    registry.leave("b")
    assert registry.largest_memory_bytes() == 5
    registry.refresh("a", 0)
    registry.refresh("c", 60)
    assert redis_server.client().hgetall("eckart:workers:memory") == {}


def test_a_server_that_is_down_raises_store_unavailable(registry, redis_server):
    redis_server.kill()
    with pytest.raises(RedisUnavailable):
        registry.alive()
    with pytest.raises(RedisUnavailable):
        registry.refresh("a", 1)
