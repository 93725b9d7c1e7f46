"""One service and one browser for all tests of the page, and small checkpoints with their jobs."""

import itertools
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import save, save_file

from tests.browser import launched, visiting
from tests.service.files import checkpoint_bytes
from tests.service.running import RunningService

KINDS = {"attention.query": (48, 48), "attention.output": (48, 48), "mlp.up": (96, 48), "mlp.down": (48, 96)}
NUMBERS = itertools.count()


# Not for the session: while it runs, no other test can start an event loop in this process.
@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def visit(browser, service):
    with visiting(browser, service.url, viewport={"width": 1280, "height": 900}) as visit:
        visit.page.set_default_timeout(60_000)
        yield visit


@pytest.fixture
def picture(request):
    """Take a screenshot if a folder for them is given."""
    folder = request.config.getoption("--pictures")

    def take(page, name):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=folder / f"{name}.png", full_page=True, animations="disabled")

    return take


@pytest.fixture
def start_api(redis_server, tmp_path):
    """Run an API without a worker."""
    url = f"{redis_server.url}?virtual_host=4"
    with ExitStack() as running:
        yield lambda **settings: running.enter_context(
            RunningService(tmp_path / "data", redis_url=url, min_free_bytes=0, **settings)
        )


def weights_of(names_and_shapes):
    generator = torch.Generator().manual_seed(0)
    return {f"{name}.weight": torch.randn(*shape, generator=generator) for name, shape in names_and_shapes}


def blocks(number):
    return [(f"layers.{block}.{kind}", shape) for block in range(number) for kind, shape in KINDS.items()]


@pytest.fixture
def stored(service, tmp_path):
    """Store a small checkpoint under an id of its own."""
    path = tmp_path / "model.safetensors"
    save_file(weights_of([*blocks(3), ("head", (64, 48))]), path)
    return service.client.upload(path, id=f"small-{next(NUMBERS)}")


@pytest.fixture(scope="session")
def compared(service, tmp_path_factory):
    """Make three jobs that follow from each other, on one checkpoint; return its id and theirs."""
    path = tmp_path_factory.mktemp("compared") / "model.safetensors"
    save_file(weights_of(blocks(3)), path)
    checkpoint = service.client.upload(path, id="compared")
    specs = [{"rank": {"ratio": 0.6}}, {"rank": {"ratio": 0.4}}, {"rank": {"ratio": 0.4}, "method": "pivot"}]
    jobs = [service.client.submit(checkpoint, spec).id for spec in specs]
    for job in jobs:
        service.client.wait(job)
    return checkpoint, jobs


def markup(number):
    """Return a name that would run a script where it became markup."""
    return f"<img src=x onerror=alert({number})>"


def hostile_file():
    """Return a safetensors file whose names are markup."""
    return save(weights_of([(markup(1), (32, 24)), (f"a.{markup(2)}", (32, 24))]))


def large_file(layers):
    """Return a file of many small weights, like the experts of a large model."""
    shape = (8, 8)
    return checkpoint_bytes({f"layers.{i // 100}.experts.{i % 100}.up.weight": shape for i in range(layers)})
