"""state/redis.py: every form of an address works, and errors of the server are translated."""

import pytest
from redis import exceptions

from state.errors import RedisUnavailable
from state.redis import client_url, redis_client, translated


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("redis://:secret@host:6379/2", "redis://:secret@host:6379/2"),
        ("rediss://host:6380/0", "rediss://host:6380/0"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("redis+socket:///run/redis.sock", "unix:///run/redis.sock?db=0"),
        ("redis+socket:///run/redis.sock?virtual_host=3", "unix:///run/redis.sock?db=3"),
        ("redis+socket://:secret@/run/redis.sock", "unix://:secret@/run/redis.sock?db=0"),
    ],
)
def test_every_form_of_an_address_becomes_one_that_the_client_knows(given, expected):
    assert client_url(given) == expected


@pytest.mark.parametrize("form", ["url", "unix_url"])
def test_both_forms_of_a_socket_reach_the_server(redis_server, form):
    with redis_client(getattr(redis_server, form)) as client:
        assert client.set("key", "value")
        assert client.get("key") == "value"


@pytest.mark.parametrize(
    "trouble",
    [
        exceptions.ConnectionError("refused"),
        exceptions.TimeoutError("slow"),
        exceptions.BusyLoadingError("loading"),
        exceptions.AuthenticationError("who"),
        exceptions.ReadOnlyError("replica"),
        exceptions.OutOfMemoryError("full"),
        exceptions.MasterDownError("gone"),
        exceptions.ResponseError("MISCONF Errors writing to the AOF file"),
        exceptions.ResponseError("BUSY a script is running"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_each_error_of_the_server_is_translated_with_its_cause(trouble):
    with pytest.raises(RedisUnavailable, match="try again") as caught, translated():
        raise trouble
    assert caught.value.__cause__ is trouble


def test_an_error_of_ours_is_not_translated(redis_server):
    with pytest.raises(exceptions.ResponseError), translated():
        redis_server.client().eval("return nonsense()", 0)


def test_a_full_server_is_unavailable(jobs, new, redis_server):
    jobs.create(new)
    client = redis_server.client()
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisUnavailable):
            jobs.create(new)
    finally:
        client.config_set("maxmemory", 0)
    assert jobs.create(new).state == "queued"
    assert len(jobs.list().jobs) == 2
