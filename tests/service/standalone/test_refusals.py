"""What cannot work is refused in one sentence, before any child starts."""

import os
import socket
import subprocess
import sys

import pytest

from service.standalone.run_dir import held


@pytest.fixture
def start(tmp_path):
    """Run the standalone service where it must not start; give what it says."""

    def start(**environment):
        settings = {"ECKART_DATA_DIR": str(tmp_path / "data"), "ECKART_PORT": "0", **environment}
        run = subprocess.run(
            [sys.executable, "-m", "eckart", "serve"],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (run.returncode, run.stdout) == (1, "")
        assert not (tmp_path / "data" / "redis").exists()
        lines = run.stderr.splitlines()
        assert len(lines) == 1, run.stderr
        return lines[0]

    return start


def test_a_second_start_on_the_same_data_is_refused(start, tmp_path):
    with held(tmp_path / "data" / "run"):
        assert f"{tmp_path / 'data'} is in use by process {os.getpid()}" in start()


def test_a_port_in_use_is_refused(start):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in start(ECKART_PORT=str(port))


def test_a_data_directory_that_is_a_file_is_refused(start, tmp_path):
    (tmp_path / "file").touch()
    assert "ECKART_DATA_DIR" in start(ECKART_DATA_DIR=str(tmp_path / "file"))


def test_a_redis_that_cannot_be_one_is_refused(start):
    assert "ECKART_REDIS_URL: " in start(ECKART_REDIS_URL="http://x")


def test_a_setting_that_makes_no_sense_is_named(start):
    assert start(ECKART_PORT="high").startswith("eckart: ECKART_PORT: ")
