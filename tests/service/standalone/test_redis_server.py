"""`service.standalone.redis_server`: its binary, the path of its socket, its configuration."""

import os
import signal
import stat
import subprocess
from contextlib import contextmanager

import pytest
import redis

from service.standalone.redis_server import (
    SOCKET_PATH_LIMIT_BYTES,
    RedisServerError,
    find_server,
    is_ready,
    running_server,
    server_command,
    socket_path,
)


@pytest.mark.parametrize(
    ("on_path", "found"),
    [
        (["redis-server"], "redis-server"),
        (["valkey-server"], "valkey-server"),
        (["redis-server", "valkey-server"], "valkey-server"),
    ],
)
def test_a_server_on_the_path_comes_first(tmp_path, on_path, found):
    for name in on_path:
        (tmp_path / name).touch(mode=0o755)
    assert find_server(str(tmp_path)) == tmp_path / found


def test_without_one_on_the_path_the_wheel_has_it(tmp_path):
    (tmp_path / "redis-server").touch(mode=0o644)  # no program
    version = subprocess.run([find_server(str(tmp_path)), "--version"], check=True, capture_output=True)
    assert b"server v=" in version.stdout


def test_without_any_the_message_names_the_three_ways(tmp_path):
    with pytest.raises(RedisServerError) as refusal:
        find_server(str(tmp_path), wheel="no-such-wheel-here")
    for way in ("ECKART_REDIS_URL", "valkey-server or redis-server on PATH", "pip install"):
        assert way in str(refusal.value)


@pytest.fixture
def long_dir(tmp_path):
    path = tmp_path / ("x" * SOCKET_PATH_LIMIT_BYTES)
    path.mkdir()
    return path


def test_with_a_short_path_the_socket_is_in_the_run_directory(short_dir, long_dir):
    with socket_path(short_dir, temp_dir=long_dir) as socket:
        assert socket == short_dir / "redis.sock"
        socket.touch()
    assert list(short_dir.iterdir()) == []


def test_a_long_path_moves_the_socket_to_a_private_directory_that_goes_with_it(short_dir, long_dir):
    with socket_path(long_dir, temp_dir=short_dir) as socket:
        assert len(os.fsencode(socket)) <= SOCKET_PATH_LIMIT_BYTES
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        socket.touch()
    assert list(short_dir.iterdir()) == []


def test_a_private_directory_left_by_a_dead_start_is_used_again(short_dir, long_dir):
    with socket_path(long_dir, temp_dir=short_dir) as socket:
        pass
    socket.parent.mkdir(mode=0o700)
    socket.touch()
    with socket_path(long_dir, temp_dir=short_dir) as again:
        assert again == socket


@pytest.mark.parametrize("place", ["short_dir", "long_dir"])
def test_a_running_server_is_found_where_its_socket_is(request, redis_server, short_dir, place):
    run_dir = request.getfixturevalue(place)
    assert running_server(run_dir, temp_dir=short_dir) is None
    with socket_path(run_dir, temp_dir=short_dir) as socket:
        socket.symlink_to(redis_server.socket)
        assert running_server(run_dir, temp_dir=short_dir) == f"unix://{socket}"
        socket.unlink()
        socket.touch()  # what a dead server leaves
        assert running_server(run_dir, temp_dir=short_dir) is None


def open_to_others(place):
    place.mkdir()
    place.chmod(0o755)


def a_link(place):
    elsewhere = place.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    place.symlink_to(elsewhere)


@pytest.mark.parametrize("trap", [open_to_others, a_link])
def test_a_directory_that_somebody_else_may_have_laid_out_is_refused(short_dir, long_dir, trap):
    with socket_path(long_dir, temp_dir=short_dir) as socket:
        place = socket.parent
    trap(place)
    with pytest.raises(RedisServerError, match="remove it"), socket_path(long_dir, temp_dir=short_dir):
        pass


def test_without_any_short_path_the_message_names_the_settings(long_dir):
    with (
        pytest.raises(RedisServerError, match="ECKART_DATA_DIR or TMPDIR"),
        socket_path(long_dir, temp_dir=long_dir),
    ):
        pass


@pytest.fixture
def server(short_dir, eventually):
    """Start the real server with our configuration; yield its client and its process."""
    socket = short_dir / "a socket"  # a space, as in many home directories
    command = server_command(find_server(os.environ["PATH"]), socket=socket, data_dir=short_dir)

    @contextmanager
    def running():
        process = subprocess.Popen(command)
        try:
            eventually(lambda: is_ready(socket))
            with redis.Redis(unix_socket_path=str(socket), decode_responses=True) as client:
                yield client, process
        finally:
            process.kill()
            process.wait()

    assert not is_ready(socket)
    return running


def test_the_server_is_configured_by_us(server, short_dir):
    with server() as (client, _):
        told = client.config_get("*")
        assert {name: told[name] for name in ("port", "appendonly", "appendfsync", "save")} == {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
        }
        assert told["maxmemory-policy"] == "noeviction"
        assert told["maxmemory"] == str(2**30)
        assert told["dir"] == str(short_dir)
        assert stat.S_IMODE((short_dir / "a socket").stat().st_mode) == 0o700


def test_what_was_written_outlives_the_server(server):
    with server() as (client, process):
        client.set("kept", "yes")
        process.send_signal(signal.SIGTERM)
        process.wait()
    with server() as (client, _):
        assert client.get("kept") == "yes"


def test_a_socket_left_by_a_killed_server_is_no_obstacle(server, short_dir):
    with server() as (_, process):
        process.kill()
        process.wait()
    assert (short_dir / "a socket").is_socket()
    with server() as (client, _):
        assert client.ping()
