"""What a user does on the page beside the usual way: folders, breaks, failures, keys, and lines to copy."""

import os
import subprocess
import sys
import tarfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from schemas.problem import ProblemKind
from state.jobs.records import new_token
from tests.browser import visiting
from tests.e2e.ui.test_page import drop_folder
from tests.service.files import FILES, MODEL
from tests.service.running import SPEC, until
from tests.service.test_prefix import proxy

expect = pytest.importorskip("playwright.sync_api").expect

ROOT = Path(__file__).parents[3]
SECRET = "the-secret-of-alice"
KEY = {"X-API-Key": SECRET}
MB = 1_000_000


@contextmanager
def page_of(browser, service, *, key=None):
    """Visit the page of a service, with a key that was given before."""
    with visiting(browser, service.url, viewport={"width": 1280, "height": 900}) as visit:
        visit.page.set_default_timeout(60_000)
        if key is not None:
            visit.page.add_init_script(f"sessionStorage.setItem('eckart.key', '{key}')")
        yield visit


def test_a_folder_that_is_dropped_is_stored(visit, service, tmp_path):
    folder = tmp_path / "dropped folder"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(save({"layers.0.weight": torch.rand(64, 48)}))
    page = visit.go()
    drop_folder(page, folder)
    page.locator("#size").wait_for()

    assert page.locator("h1").inner_text() == "dropped-folder"
    stored = next(one for one in service.client.checkpoints() if one.id == "dropped-folder")
    assert sorted(file.name for file in stored.files) == ["config.json", "model.safetensors"]


def test_an_upload_that_is_stopped_goes_on_where_it_was(browser, start_api, tmp_path):
    service = start_api()
    path = tmp_path / "large.safetensors"
    path.write_bytes(save({"a.weight": torch.zeros(1500, 1000)}))
    with page_of(browser, service) as visit:
        page = visit.go()
        network = page.context.new_cdp_session(page)
        slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 2 * MB}
        network.send("Network.emulateNetworkConditions", slow)
        page.locator("#files").set_input_files(path)
        until(lambda: page.evaluate("(document.querySelector('progress')?.value ?? 0) > 1e6"))
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("alert")).to_contain_text("The upload was stopped")
        page.get_by_role("button", name="Choose again").click()
        expect(page.get_by_role("region", name="Unfinished uploads")).to_contain_text("large.safetensors")

        network.send("Network.emulateNetworkConditions", slow | {"uploadThroughput": -1})
        offsets = []
        page.on("request", lambda request: offsets.append(request.headers.get("upload-offset")))
        page.locator("#files").set_input_files(path)
        expect(page.locator("h1")).to_have_text("large")
    assert min(int(offset) for offset in offsets if offset is not None) > 0
    assert service.http.get("/v1/checkpoints/large").json()["files"][0]["size_bytes"] == path.stat().st_size


def failed(service):
    """Return a job that failed of the machine, so that it may be resumed."""
    job = service.submit(service.stored(MODEL)).json()["id"]
    claim = service.jobs.claim(job, new_token("test"))
    kind = ProblemKind.WORKER_TROUBLE
    assert service.jobs.fail(job, claim.fence, kind.problem(kind.text(**kind.examples)))
    return job


def test_a_job_that_failed_is_resumed_and_deleted(browser, start_api):
    service = start_api()
    job = failed(service)
    with page_of(browser, service) as visit:
        page = visit.go(f"#/jobs/{job}")
        expect(page.get_by_role("alert")).to_contain_text("“Resume” goes on")
        page.get_by_role("button", name="Resume").click()
        expect(page.locator(".state")).to_have_text("queued")
        expect(page.get_by_text("Next in the queue.")).to_be_visible()
        service.finish(job, FILES)
        expect(page.locator(".state")).to_have_text("succeeded")

        visit.dialogs_are_accepted = True
        page.get_by_role("button", name="Delete").click()
        expect(page.get_by_text("No job fits.")).to_be_visible()
    assert page.url.endswith("#/jobs")
    assert service.http.get(f"/v1/jobs/{job}").status_code == 404


def test_a_job_that_waits_says_why_and_for_how_long(browser, start_api):
    service = start_api()
    checkpoint = service.stored(MODEL)
    waiting, second = (service.submit(checkpoint).json()["id"] for _ in range(2))
    claim = service.jobs.claim(waiting, new_token("test"))
    kind = ProblemKind.OUT_OF_SPACE
    why = kind.problem(kind.text(**kind.examples))
    assert service.jobs.retry(waiting, claim.fence, why, pause_s=3600)
    at = service.http.get(f"/v1/jobs/{waiting}").json()["waiting"]["next_attempt_at"]
    with page_of(browser, service) as visit:
        page = visit.go(f"#/jobs/{waiting}")
        told = page.get_by_role("region", name="Progress")
        shown = page.evaluate("(at) => new Date(at).toLocaleTimeString('en-GB')", at)
        expect(told).to_contain_text(f"{why.title}: it is tried again at {shown}, or soon after.")
        page = visit.go("#/jobs")
        expect(page.get_by_text(f"waits: {why.title.lower()}")).to_be_visible()
        page = visit.go(f"#/jobs/{second}")
        expect(page.get_by_role("region", name="Progress")).to_contain_text("queue")


@pytest.fixture
def guarded(start_api):
    """Run a service with a key, and its finished job."""
    service = start_api(api_keys=f"alice:{SECRET}")
    upload = service.http.put("/v1/checkpoints/m/model.safetensors", content=MODEL, headers=KEY)
    assert upload.status_code == 201
    job = service.http.post("/v1/jobs", json={"checkpoint": "m", "spec": SPEC}, headers=KEY).json()["id"]
    service.finish(job, FILES)
    return service, job


def test_with_a_key_the_browser_itself_writes_a_download_to_the_disk(browser, guarded):
    service, job = guarded
    with page_of(browser, service, key=SECRET) as visit:
        page = visit.go(f"#/jobs/{job}")
        for name in ("model.safetensors", "All files as a tar, 160 B"):
            with page.expect_download() as download:
                page.get_by_role("link", name=name).click()
            # An address of the service, not one of what is in the page's memory.
            assert download.value.url.startswith(f"{service.url}/v1/jobs/{job}/")
            assert SECRET not in download.value.url
            if name == "model.safetensors":
                assert download.value.path().read_bytes() == MODEL
        with tarfile.open(download.value.path()) as archive:
            assert archive.extractfile("model.safetensors").read() == MODEL
        with page.context.expect_page() as opened:
            page.get_by_role("link", name="Report as a page").click()
        expect(opened.value.get_by_role("heading", name="Eckart report")).to_be_visible()


def run(lines, kind, folder, **environment):
    """Run lines that the page shows, as a user who copies them."""
    command = ["bash", "-c", lines] if kind == "curl" else [sys.executable, "-c", lines]
    settings = {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", **environment}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder, ending=".safetensors"):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.endswith(ending)}


@pytest.mark.parametrize(("kind", "into"), [("curl", "result"), ("Python", "compared-compressed")])
def test_the_lines_that_make_a_result_again_do(visit, service, compared, tmp_path, kind, into):
    _, (job, *_) = compared
    service.client.download(job, tmp_path / "first")
    page = visit.go(f"#/jobs/{job}")
    page.get_by_text("Make it again").click()
    lines = page.get_by_label(f"the lines for {kind}", exact=True).inner_text()
    run(lines, kind, tmp_path)

    assert contents(tmp_path / into) == contents(tmp_path / "first")
    assert (tmp_path / into / "report.json").is_file()
    newest = next(iter(service.client.jobs()))
    assert newest.id != job


@pytest.mark.parametrize("kind", ["curl", "Python"])
def test_the_lines_of_a_report_make_its_result_again_elsewhere(visit, service, compared, tmp_path, kind):
    """From the file that the job was given, which nobody stores beforehand."""
    _, (job, *_) = compared
    service.client.download(job, tmp_path / "first")
    source = Path(service.data_dir / "checkpoints" / "compared" / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(source.read_bytes())
    page = visit.go(f"#/jobs/{job}")
    lines = page.get_by_role("region", name=f"With {kind}").inner_text()
    run(lines, kind, tmp_path)

    newest = next(iter(service.client.jobs()))
    assert newest.id != job
    service.client.wait(newest.id)
    service.client.download(newest.id, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "first")
    if kind == "Python":
        assert contents(tmp_path / "compressed") == contents(tmp_path / "first")


@pytest.mark.parametrize("kind", ["curl", "Python"])
def test_the_lines_send_the_key_where_one_is_needed(browser, guarded, tmp_path, kind):
    service, first = guarded
    with page_of(browser, service, key=SECRET) as visit:
        page = visit.go(f"#/jobs/{first}")
        page.get_by_text("Make it again").click()
        lines = page.get_by_label(f"the lines for {kind}", exact=True).inner_text()
    assert SECRET not in lines

    def others():
        listed = service.http.get("/v1/jobs", headers=KEY).json()["jobs"]
        return [job["id"] for job in listed if job["id"] != first]

    command = ["bash", "-c", lines] if kind == "curl" else [sys.executable, "-c", lines]
    settings = {"PYTHONPATH": str(ROOT), "ECKART_API_KEY": SECRET}
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | settings) as process:
        until(others)
        service.finish(others()[0], FILES)
    into = "result" if kind == "curl" else "m-compressed"
    assert (process.returncode, contents(tmp_path / into)) == (0, FILES)


def test_below_a_path_the_report_shows_its_addresses_with_that_path(browser, start_api):
    service = start_api()
    job = service.submit(service.stored(MODEL)).json()["id"]
    service.finish(job, FILES)
    headers = {"X-Forwarded-Prefix": "/eckart"}
    with proxy(service, headers=headers) as url, visiting(browser, url) as visit:
        page = visit.page
        page.goto(f"{url}/v1/jobs/{job}/report?format=html")
        alone = page.get_by_role("region", name="With curl").inner_text()
        page = visit.go(f"#/jobs/{job}")
        within = page.get_by_role("region", name="With curl").inner_text()

    assert alone == within
    assert alone.startswith(f"curl {url}/v1/jobs ")
