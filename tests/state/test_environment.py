"""state/environment.py: misspelled settings stop the start, and what Kubernetes sets counts as unset."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings as ServiceSettings
from state.environment import KNOWN_NAMES, unknown_variables
from state.settings import StateSettings, setting_errors
from worker.settings import Settings as WorkerSettings

ROOT = Path(__file__).parents[2]
CLIENT = {"ECKART_URL", "ECKART_API_KEY"}


def test_the_known_names_are_the_settings_of_all_programs():
    fields = ServiceSettings.model_fields | WorkerSettings.model_fields
    assert {f"ECKART_{name.upper()}" for name in fields} | CLIENT == KNOWN_NAMES


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("ECKART_CACHE_BYTE", "ECKART_CACHE_BYTES"),
        ("ECKART_MAXATTEMPTS", "ECKART_MAX_ATTEMPTS"),
        ("ECKART_REDIS", "ECKART_REDIS_URL"),
        ("ECKART_cache_bytes", None),
    ],
)
@pytest.mark.parametrize("settings", [StateSettings, ServiceSettings, WorkerSettings])
def test_an_unknown_variable_is_refused_with_the_nearest_name(monkeypatch, settings, wrong, meant):
    monkeypatch.setenv(wrong, "sekret")
    with pytest.raises(ValidationError) as refusal:
        settings()
    (line,) = setting_errors(refusal.value)
    assert line.startswith(f"{wrong}: there is no such setting; did you mean {meant or 'ECKART_'}")
    assert "sekret" not in line


def test_each_unknown_variable_has_a_line():
    lines = unknown_variables({"ECKART_B": "", "ECKART_A": "", "PATH": "", "OTHER_ECKART_A": ""})
    assert [line.partition(":")[0] for line in lines] == ["ECKART_A", "ECKART_B"]


LINKS = {
    "ECKART_PORT": "tcp://10.0.0.1:8000",
    "ECKART_SERVICE_HOST": "10.0.0.1",
    "ECKART_SERVICE_PORT": "8000",
    "ECKART_SERVICE_PORT_HTTP": "8000",
    "ECKART_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "ECKART_PORT_8000_TCP_PROTO": "tcp",
    "ECKART_PORT_8000_TCP_PORT": "8000",
    "ECKART_PORT_8000_TCP_ADDR": "10.0.0.1",
    "ECKART_REDIS_PORT": "tcp://10.0.0.2:6379",
    "ECKART_REDIS_SERVICE_HOST": "10.0.0.2",
    "ECKART_REDIS_PORT_6379_TCP_ADDR": "10.0.0.2",
}


def test_the_service_links_of_kubernetes_count_as_unset(monkeypatch):
    for name, value in LINKS.items():
        monkeypatch.setenv(name, value)
    assert ServiceSettings().port == 8000
    assert WorkerSettings().redis_url is None


@pytest.mark.parametrize("module", ["worker", "worker.health", "service.standalone"])
def test_no_program_starts_with_an_unknown_variable(tmp_path, module):
    environment = {"PATH": "/usr/bin:/bin", "ECKART_DATA_DIR": str(tmp_path / "data"), "ECKART_WORKER": "2"}
    command = [sys.executable, "-m", module]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode in {1, 2, os.EX_CONFIG}
    assert "ECKART_WORKER: there is no such setting; did you mean ECKART_WORKERS? " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()
