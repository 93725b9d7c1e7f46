"""A real Chromium, and pages in it that notice every error."""

from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.browser import launched

UI = Path(__file__).parents[3] / "service" / "ui"
# An origin for modules, which browsers do not load from files.
ORIGIN = "http://ui.test"
EMPTY = '<!DOCTYPE html><html lang="en"><title>Test</title><main><div id="chart"></div></main></html>'


# Not for the session: while it runs, no other test can start an event loop in this process.
@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@contextmanager
def quiet_tab(browser):
    """Open a tab; fail at its end if its page logged an error, threw, or asked for what did not come."""
    context = browser.new_context()
    tab = context.new_page()
    faults = []
    tab.on("console", lambda line: faults.append(line.text) if line.type in {"error", "warning"} else None)
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("requestfailed", lambda request: faults.append(request.url))
    yield tab
    context.close()
    assert faults == []


def with_modules(tab):
    """Serve the modules of the page to a tab with an empty document."""

    def answer(route):
        name = route.request.url.removeprefix(ORIGIN).lstrip("/")
        if name in {"", "favicon.ico"}:
            route.fulfill(body=EMPTY, content_type="text/html")
        else:
            route.fulfill(path=UI / name)

    tab.route(f"{ORIGIN}/**", answer)
    tab.goto(f"{ORIGIN}/")
    return tab


@pytest.fixture
def tab(browser):
    with quiet_tab(browser) as tab:
        yield tab


@pytest.fixture
def modules(tab):
    return with_modules(tab)
