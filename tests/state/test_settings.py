"""state/settings.py: settings come from the environment, and those that cannot work are refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from state.settings import StateSettings, setting_errors


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("ECKART_DATA_DIR", "/somewhere")
    monkeypatch.setenv("ECKART_LEASE_S", "37.5")
    settings = StateSettings()
    assert (settings.data_dir, settings.lease_s) == (Path("/somewhere"), 37.5)


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        StateSettings().lease_s = 1


@pytest.mark.parametrize("name", ["lease_s", "heartbeat_s", "reaper_s", "max_attempts"])
def test_a_setting_that_cannot_work_is_refused(name):
    with pytest.raises(ValidationError, match=name):
        StateSettings(**{name: 0})


@pytest.mark.parametrize(("lease_s", "heartbeat_s"), [(60, 30.1), (3, 15), (29, 15), (60, float("inf"))])
def test_a_lease_that_one_lost_heartbeat_would_end_is_refused_with_what_to_do(lease_s, heartbeat_s):
    with pytest.raises(ValidationError, match=r"(?s)heartbeat_s.*at most half of ECKART_LEASE_S.*set it to"):
        StateSettings(lease_s=lease_s, heartbeat_s=heartbeat_s)


@pytest.mark.parametrize(("lease_s", "heartbeat_s"), [(60, 30), (3, 0.5), (1, 0.5)])
def test_a_lease_of_two_heartbeats_or_more_is_taken(lease_s, heartbeat_s):
    assert StateSettings(lease_s=lease_s, heartbeat_s=heartbeat_s).lease_s == lease_s


@pytest.mark.parametrize(("lease_s", "heartbeat_s"), [(60, 2), (5, 1.25), (0.4, 0.1)])
def test_a_heartbeat_that_is_not_given_follows_the_lease(lease_s, heartbeat_s):
    assert StateSettings(lease_s=lease_s).heartbeat_s == pytest.approx(heartbeat_s)


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://h", "unix:///s?db=1", "redis+socket:///s", None])
def test_an_address_that_a_client_takes_is_kept(url):
    assert StateSettings(redis_url=url).redis_url == url


def test_an_empty_address_is_none():
    assert StateSettings(redis_url="").redis_url is None


@pytest.mark.parametrize("url", ["http://x", "localhost:6379", "redis:/x", "REDIS://x", "/run/redis.sock"])
def test_an_address_that_is_not_of_redis_is_refused(url):
    with pytest.raises(ValidationError, match=r"(?s)redis_url.*begin it with one of redis://"):
        StateSettings(redis_url=url)


def test_each_error_is_one_line_with_the_variable_and_without_its_value():
    with pytest.raises(ValidationError) as refusal:
        StateSettings(redis_url="http://:secret@x", lease_s="long", heartbeat_s=0)
    faults = setting_errors(refusal.value)
    assert [fault.partition(": ")[0] for fault in faults] == [
        "ECKART_REDIS_URL",
        "ECKART_LEASE_S",
        "ECKART_HEARTBEAT_S",
    ]
    assert not any("\n" in fault or "secret" in fault or "Value error" in fault for fault in faults)


def test_every_setting_is_described():
    assert all(field.description for field in StateSettings.model_fields.values())


def test_a_default_lease_outlives_several_lost_heartbeats():
    settings = StateSettings()
    assert settings.lease_s >= 3 * settings.heartbeat_s
