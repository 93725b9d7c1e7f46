"""The service that the studies ask."""

import pytest

from benchmarks.standalone import running


@pytest.fixture(scope="session")
def url(tmp_path_factory):
    """One service for all studies."""
    with running(tmp_path_factory.mktemp("service"), threads=1) as service:
        yield service.url
