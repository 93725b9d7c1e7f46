"""The page at `/`: its bytes, its first paint, and a step of the slider, in a real browser."""

import gzip
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from shutil import which
from statistics import median
from typing import Any

from benchmarks.options import Options
from benchmarks.standalone import ROOT, running
from benchmarks.table import show
from eckart import Client

KINDS = ("self.q", "self.k", "self.v", "self.o", "mlp.gate", "mlp.up", "mlp.down")
LAYERS = (37, 500, 10_000)
STEPS = 20
# What the browser says of its main thread, in seconds since the page began.
LAYOUT = ("LayoutDuration", "RecalcStyleDuration")
MOVE = (
    "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }"
)
# From the last byte of each answer to the end of drawing it, in milliseconds: parsing and our code.
SHOWN = """
() => {
  const asked = performance.getEntriesByType("resource");
  const answers = asked.filter((entry) => entry.name.endsWith("/v1/plans"));
  return performance.getEntriesByName("plan-shown").map((shown) => {
    const answer = answers.findLast((entry) => entry.responseEnd <= shown.startTime);
    return shown.startTime + shown.duration - answer.responseEnd;
  });
}
"""
PAINT = "performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)"


def ask(options: Options) -> None:
    """Measure with one service and one browser."""
    _show_bytes()
    with running(options.place, threads=options.threads) as service, _browser() as browser:
        with Client(service.url) as client:
            checkpoints = [(layers, _store(client, options.place, layers)) for layers in LAYERS]
        _show_first_view(browser, service.url, max(options.rounds, 5))
        rows = [
            _steps(browser, f"{service.url}/#/checkpoints/{name}", layers) for layers, name in checkpoints
        ]
    header = ("layers", "least ms", "median ms", "style and layout, median ms", "elements")
    show("A step of the slider, from the last byte of the answer to the drawing", header, rows)


def _show_bytes() -> None:
    files = [path for path in (ROOT / "service" / "ui").iterdir() if not path.name.startswith("report-page")]
    by_kind = {
        kind: [file.read_bytes() for file in files if file.suffix == kind]
        for kind in (".js", ".css", ".html")
    }
    rows = [
        (
            kind,
            str(len(parts)),
            f"{sum(map(len, parts)):,}",
            f"{sum(len(gzip.compress(part)) for part in parts):,}",
        )
        for kind, parts in by_kind.items()
    ]
    show("Bytes of the page", ("files", "number", "bytes", "gzipped, each by itself"), rows)


@contextmanager
def _browser() -> Iterator[Any]:
    path = which("chromium")
    if path is None:
        raise SystemExit("this benchmark needs chromium")
    with import_module("playwright.sync_api").sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def _store(client: Client, place: Path, layers: int) -> str:
    """Store a checkpoint of so many small layers."""
    entries: dict[str, Any] = {}
    nbytes = 16 * 16 * 4
    for i in range(layers):
        name = f"model.layers.{i // len(KINDS)}.{KINDS[i % len(KINDS)]}.weight"
        entries[name] = {"dtype": "F32", "shape": [16, 16], "data_offsets": [i * nbytes, (i + 1) * nbytes]}
    header = json.dumps(entries).encode()
    path = place / f"{layers}.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(layers * nbytes))
    return client.upload(path, id=f"layers-{layers}")


def _show_first_view(browser: Any, url: str, rounds: int) -> None:
    paints, views = [], []
    for _ in range(rounds):
        # A context of its own has an empty cache.
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.locator("main h1").wait_for()
        views.append(page.evaluate("performance.now()"))
        paints += page.evaluate(PAINT)
        context.close()
    rows = [
        (name, f"{min(values):.0f}", f"{median(values):.0f}")
        for name, values in (("first paint", paints), ("the first view is there", views))
    ]
    show(f"A first visit over loopback, {rounds} rounds, empty cache", ("", "least ms", "median ms"), rows)


def _steps(browser: Any, address: str, layers: int) -> tuple[str, ...]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    page.locator("[aria-busy=false] .figures").wait_for()
    probe = page.context.new_cdp_session(page)
    probe.send("Performance.enable")
    slider, layout = page.locator("#size"), []
    for step in range(STEPS):
        before, seen = _layout_ms(probe), len(page.evaluate(SHOWN))
        slider.evaluate(MOVE, str(0.9 - step * 0.03))
        while len(page.evaluate(SHOWN)) == seen:
            page.wait_for_timeout(20)
        page.wait_for_timeout(100)
        layout.append(_layout_ms(probe) - before)
    own = page.evaluate(SHOWN)[-STEPS:]
    elements = page.evaluate("document.querySelectorAll('*').length")
    page.close()
    return f"{layers:,}", f"{min(own):.1f}", f"{median(own):.1f}", f"{median(layout):.1f}", f"{elements:,}"


def _layout_ms(probe: Any) -> float:
    metrics = {each["name"]: each["value"] for each in probe.send("Performance.getMetrics")["metrics"]}
    return float(1000 * sum(metrics[name] for name in LAYOUT))
