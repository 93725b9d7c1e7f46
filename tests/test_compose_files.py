"""docker-compose.yml as text: what can be checked of it without a Docker engine."""

from pathlib import Path

import pytest
import yaml

from service.settings import Settings
from state.environment import KNOWN_NAMES
from worker.settings import Settings as WorkerSettings

ROOT = Path(__file__).parents[1]
FIELDS = {"service": Settings.model_fields, "worker": WorkerSettings.model_fields}


@pytest.fixture
def services():
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


@pytest.mark.parametrize("name", FIELDS)
def test_a_container_gets_settings_that_its_program_has(services, name):
    given = set(services[name]["environment"])
    assert given <= KNOWN_NAMES
    assert given <= {f"ECKART_{field.upper()}" for field in FIELDS[name]}


def test_the_limits_on_uploads_are_passed_on(services):
    given = services["service"]["environment"]
    assert {"ECKART_MAX_UPLOADS", "ECKART_MIN_UPLOAD_BYTES_PER_S", "ECKART_MAX_UPLOAD_BYTES"} <= given.keys()


def test_redis_asks_for_a_password_that_only_its_clients_can_read(services):
    assert services["redis"]["command"][:2] == ["--include", "/secrets/redis.conf"]
    assert services["redis"]["depends_on"] == {"password": {"condition": "service_completed_successfully"}}
    mounts = {name: [m for m in each["volumes"] if "/secrets" in m] for name, each in services.items()}
    assert mounts.pop("password") == ["secrets:/secrets"]
    assert set(map(tuple, mounts.values())) == {("secrets:/secrets:ro",)}
    for name in FIELDS:
        assert services[name]["environment"]["ECKART_REDIS_PASSWORD_FILE"] == "/secrets/redis.password"


def test_redis_has_a_limit_at_which_it_drops_nothing(services):
    words = services["redis"]["command"]
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options["--maxmemory"] == "${REDIS_MAXMEMORY:-1gb}"
    assert options["--maxmemory-policy"] == "noeviction"


def test_every_container_is_hardened(services):
    for name, each in services.items():
        assert each["read_only"], name
        assert each["cap_drop"] == ["ALL"], name
        assert each["security_opt"] == ["no-new-privileges:true"], name


def test_only_the_service_is_published_or_reaches_out(services):
    assert [name for name, each in services.items() if "ports" in each] == ["service"]
    assert [name for name, each in services.items() if "outside" in each.get("networks", [])] == ["service"]


def test_the_keys_come_from_a_secret_file():
    document = yaml.safe_load((ROOT / "docker-compose.keys.yml").read_text())
    (name,) = document["secrets"]
    service = document["services"]["service"]
    assert service["secrets"] == [name]
    assert service["environment"] == {"ECKART_API_KEYS": f"@/run/secrets/{name}"}
