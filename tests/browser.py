"""A real Chromium, and visits of a page in it that notice every error."""

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOG_OF_A_REFUSAL = "Failed to load resource"


@contextmanager
def launched():
    """Start the browser, or skip the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """A tab on the page of one service: `page` is Playwright's; `faults` must be empty at the end."""

    page: object
    url: str
    faults: list[str] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    refusals_are_right: bool = False
    dialogs_are_accepted: bool = False

    def listen(self):
        page = self.page
        page.on("console", self._note_line)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", self._note_request)
        page.on("dialog", self._answer)

    def go(self, address="#/"):
        """Show a view, and wait until its head is there."""
        self.page.goto(f"{self.url}/{address}")
        self.page.locator("main h1").wait_for()
        return self.page

    def _answer(self, dialog):
        if self.dialogs_are_accepted:
            dialog.accept()
        else:
            self.faults.append(dialog.message)
            dialog.dismiss()

    def _note_line(self, line):
        if line.type not in {"error", "warning"}:
            return
        # The browser logs each answer that is a problem.
        if self.refusals_are_right and line.text.startswith(LOG_OF_A_REFUSAL):
            return
        self.faults.append(line.text)

    def _note_request(self, request):
        parts = urlsplit(request.url)
        if parts.scheme in {"http", "https", "ws", "wss"} and parts.netloc != urlsplit(self.url).netloc:
            self.faults.append(f"foreign host: {request.url}")


@contextmanager
def visiting(browser, url, **options):
    """Open a tab with a storage of its own; what it logs, throws or asks of foreign hosts fails the test."""
    context = browser.new_context(**options)
    visit = Visit(context.new_page(), url)
    visit.listen()
    try:
        yield visit
    finally:
        context.close()
    assert visit.faults == []
