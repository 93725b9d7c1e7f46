"""A running service for each test, shared between tests that use the default settings."""

import pytest

from tests.service.files import MODEL
from tests.service.running import RunningService


@pytest.fixture(scope="session")
def _service(tmp_path_factory, _redis_server):
    if not _redis_server.running:
        _redis_server.start()
    # A database of its own, apart from what other tests write.
    url = f"{_redis_server.url}?virtual_host=1"
    data_dir = tmp_path_factory.mktemp("data")
    with RunningService(data_dir, redis_url=url, min_free_bytes=0, idle_timeout_s=2) as running:
        yield running


@pytest.fixture
def service(_service, _redis_server):
    """Return the shared service; tests must choose different ids."""
    if not _redis_server.running:
        _redis_server.start()
    return _service


@pytest.fixture
def start(redis_server, tmp_path):
    """Start services with other settings, on a directory and a database of the test's own."""
    running = []

    def start_one(**settings):
        usual = {"redis_url": redis_server.url, "min_free_bytes": 0}
        made = RunningService(tmp_path, **(usual | settings))
        running.append(made.__enter__())
        return made

    yield start_one
    for made in running:
        made.__exit__()


@pytest.fixture
def stored(service):
    return service.stored(MODEL)


@pytest.fixture
def job(service, stored):
    return service.submit(stored).json()
