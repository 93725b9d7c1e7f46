"""What the documentation says is what the code does."""

import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from examples.minilm import installed

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
FOLDERS = "benchmarks|docs|eckart|examples|locks|schemas|service|state|tests|tools|worker"


def test_the_generated_parts_are_fresh():
    check = [sys.executable, "docs/generate.py", "--check"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(check, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_that_a_page_names_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert set(re.findall(r"`make ([a-z-]+)", page.read_text())) <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_a_page_names_exist(page):
    """In backquotes or, for documentation and code, anywhere; decisions may name files of their time."""
    text = page.read_text()
    quoted = re.findall(rf"`((?:{FOLDERS})/[\w/.-]*)`", text)
    files = re.findall(rf"\b((?:{FOLDERS})/[\w/.-]*\.(?:md|py))", text)

    assert [name for name in [*quoted, *files] if not (ROOT / name).exists()] == []


def test_the_index_links_every_page_and_every_decision():
    linked = re.findall(r"\]\(([\w./-]+\.md)\)", (DOCS / "README.md").read_text())
    pages = {str(page.relative_to(DOCS)) for page in [*DOCS.glob("*.md"), *DECISIONS]}

    assert pages - set(linked) == {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_plan_that_the_page_on_specs_shows_is_what_the_command_prints(tmp_path):
    page = (DOCS / "3-spec.md").read_text()
    spec = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    command = re.search(r"```sh\neckart (plan .*)\n```", page)
    shown = re.search(r"```\n(layers .*?)```", page, re.DOTALL)
    assert spec
    assert command
    assert shown
    (tmp_path / "spec.json").write_text(spec[1])
    (tmp_path / "model.safetensors").symlink_to(installed("model.safetensors"))

    done = subprocess.run(
        [sys.executable, "-m", "eckart", *command[1].split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"plan for model.safetensors\n\n{shown[1]}"


def test_every_make_target_is_explained_by_make():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    shown = subprocess.check_output(["make", "--no-print-directory"], cwd=ROOT, text=True)

    assert {line.split()[1] for line in shown.splitlines()} == set(phony[1].split())


class _Moody(BaseHTTPRequestHandler):
    """A service that answers with one status after another; 0 breaks off before an answer, 1 within it."""

    statuses: tuple[int, ...] = ()
    keys: tuple[str | None, ...] = ()

    def do_GET(self):
        type(self).keys += (self.headers["X-API-Key"],)
        status, *rest = self.statuses
        type(self).statuses = tuple(rest)
        if status:
            self.send_response(max(status, 200))
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"half"[: 2 if status == 1 else 4])

    def log_message(self, *_args):
        """Say nothing."""


@pytest.fixture
def moody():
    with HTTPServer(("127.0.0.1", 0), _Moody) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/jobs/J"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("statuses", "warned"),
    [
        ((0, 429, 503, 409, 200, 200), ""),
        ((409, 1, 200), "no result: HTTP 200\n"),
        ((503, 410, 200), "no result: HTTP 410\n"),
    ],
)
@pytest.mark.parametrize("key", ["", "secret"])
def test_the_loop_that_waits_survives_hiccups_and_ends_where_there_is_no_result(
    moody, tmp_path, statuses, warned, key
):
    block = re.search(r"```sh\n(job=.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block
    script = re.sub(r"^job=.*", f"job={moody}", block[1]).replace("sleep 1", ":")
    script = script.replace("key= ", f"key={key} ")
    _Moody.statuses, _Moody.keys = statuses, ()

    done = subprocess.run(
        ["sh", "-c", script], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )

    assert (done.stdout, done.stderr) == ("half", warned)
    assert _Moody.keys == (key or None,) * len(statuses)
