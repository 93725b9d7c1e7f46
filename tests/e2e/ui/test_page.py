"""The page at `/`, as a user goes through it: real service, real worker, real browser."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from tests.e2e.ui.conftest import hostile_file, markup
from tests.service.files import sharded_set

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=60_000)

SLIDE = (
    "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }"
)
DROP = """
(zone, [name, coded]) => {
  const bytes = Uint8Array.from(atob(coded), (sign) => sign.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  zone.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}
"""
MB = 1_000_000
ROOT = Path(__file__).parents[3]


def slide(page, value):
    page.locator("#size").evaluate(SLIDE, str(value))


def drop(page, name, content):
    page.locator(".drop").evaluate(DROP, [name, base64.b64encode(content).decode()])


def spec_of(page):
    return json.loads(page.locator("#spec").input_value())


def shown_parameters(page):
    return page.locator(".figures dd").first


def assert_plan_is_shown(service, page):
    """Check that the page shows the plan of the spec that it shows."""
    plan = service.client.plan(page.locator("h1").inner_text(), spec_of(page))
    expect(shown_parameters(page)).to_contain_text(f": {plan.totals.parameter_savings * 100:.1f} % saved")
    return plan


def drop_folder(page, folder):
    """Drop a folder by the browser's own drag: what a script drops has no folders."""
    box = page.locator(".drop").bounding_box()
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + 10}
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    tools = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        tools.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})


EMBED = """
import numpy as np
vectors = model.encode(["A dog barks.", "The hound is loud.", "Shares fell on Monday."])
print(*vectors.shape, float(vectors[0] @ vectors[1] - vectors[0] @ vectors[2]))
"""


def test_a_fresh_user_drops_slides_watches_and_runs(visit, service, minilm, picture, tmp_path):
    """All that a user does with a model's folder, and every line that is run is one that the page shows."""
    name = "all-MiniLM-L6-v2"
    shutil.copytree(minilm.parent, tmp_path / name, ignore=shutil.ignore_patterns(".*"))
    page = visit.go()
    picture(page, "home")
    drop_folder(page, tmp_path / name)
    page.locator("#size").wait_for()
    before = assert_plan_is_shown(service, page)
    picture(page, "plan")
    slide(page, 0.3)
    assert assert_plan_is_shown(service, page).totals.parameters_after < before.totals.parameters_after
    slide(page, 0.5)
    assert spec_of(page)["rank"] == {"ratio": 0.5}
    plan = assert_plan_is_shown(service, page)

    page.get_by_role("button", name="Compress", exact=True).click()
    page.get_by_role("progressbar").wait_for()
    page.get_by_role("heading", name="Run it").wait_for()
    job = service.client.job(page.url.rpartition("/")[2])
    assert job.summary.parameters_after == plan.totals.parameters_after
    picture(page, "result")
    with page.expect_download() as download:
        page.get_by_role("link", name="All files as a tar").click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    shell, python = (page.get_by_label(f"the lines that {do} it", exact=True) for do in ("unpack", "run"))
    subprocess.run(["bash", "-e", "-c", shell.inner_text()], cwd=tmp_path, check=True)
    assert len(python.inner_text().splitlines()) == 3
    assert embedded(python.inner_text(), tmp_path) > 0.2

    page.go_back()
    expect(page.locator(".chart-readout").first).to_be_visible()
    page.get_by_text("from the singular values", exact=True).wait_for()
    picture(page, "plan-with-spectra")


def embedded(lines, folder):
    """Run the lines in a fresh Python, and say how much nearer two sentences of one meaning are."""
    run = subprocess.run(
        [sys.executable, "-P", "-c", lines + EMBED],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    *shape, nearer = run.stdout.split()[-3:]
    assert shape == ["3", "384"]
    return float(nearer)


def test_form_and_json_write_each_other(visit, service, stored):
    page = visit.go(f"#/checkpoints/{stored}")
    page.get_by_label("Method").select_option("pivot")
    page.get_by_text("Rules and layout").click()
    page.get_by_label("But not those").fill("head\n")
    page.get_by_label("But not those").blur()
    assert spec_of(page) == {"method": "pivot", "rank": {"ratio": 0.5}, "exclude": ["head"]}
    assert_plan_is_shown(service, page)

    page.locator("#spec").fill('{"method": "svd", "rank": 5, "seed": 7, "layout": "dense"}')
    assert page.get_by_label("Method").input_value() == "svd"
    assert page.locator("#size").input_value() == "5"
    assert page.get_by_label("Layout of the result").input_value() == "dense"
    assert page.get_by_label("Stored as").input_value() == "keep"
    slide(page, 6)
    assert spec_of(page) == {"method": "svd", "rank": 6, "seed": 7, "layout": "dense"}

    page.locator("#spec").fill('{"rank": ')
    expect(page.get_by_text("Not JSON yet")).to_be_visible()
    assert page.locator("#size").input_value() == "6"
    page.reload()
    page.locator("#size").wait_for()
    assert page.locator("#size").input_value() == "6"


def test_a_spec_that_cannot_work_says_why(visit, stored):
    visit.refusals_are_right = True
    page = visit.go(f"#/checkpoints/{stored}")
    page.locator("#spec").fill('{"rank": {"ratio": 1.5}}')

    expect(page.get_by_role("alert").filter(has_text="/spec/rank/ratio")).to_be_visible()


def test_a_drag_asks_for_one_plan_at_a_time_and_shows_the_last(visit, service, stored):
    page = visit.go(f"#/checkpoints/{stored}")
    expect(shown_parameters(page)).to_contain_text("saved")
    under_way, most, asked = set(), [], []
    is_plan = lambda request: request.url.endswith("/v1/plans")  # noqa: E731
    page.on(
        "request", lambda r: is_plan(r) and (under_way.add(r), most.append(len(under_way)), asked.append(r))
    )
    page.on("requestfinished", lambda request: under_way.difference_update({request}))

    for value in range(80, 20, -1):
        slide(page, value / 100)

    assert spec_of(page)["rank"] == {"ratio": 0.21}
    assert_plan_is_shown(service, page)
    assert max(most) == 1
    assert len(asked) < 60


def test_a_full_service_is_asked_again_after_a_while(visit, service, stored):
    visit.refusals_are_right = True
    page = visit.go(f"#/checkpoints/{stored}")
    expect(shown_parameters(page)).to_contain_text("saved")
    refusal = {"status": 429, "headers": {"Retry-After": "1"}, "json": {"title": "busy", "detail": "busy"}}
    page.route("**/v1/plans", lambda route: route.fulfill(**refusal), times=1)
    slide(page, 0.4)

    assert_plan_is_shown(service, page)


def test_a_running_and_a_waiting_job_are_canceled(visit, service, tmp_path):
    path = tmp_path / "model.safetensors"
    big = {f"layers.{i}.weight": torch.rand(1500, 1500) for i in range(4)}
    path.write_bytes(save(big))
    checkpoint = service.client.upload(path)
    running, waiting = (service.client.submit(checkpoint, {"rank": {"error": 0.1}}).id for _ in range(2))
    page = visit.go(f"#/jobs/{waiting}")
    expect(page.get_by_text("in the queue")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".state")).to_have_text("canceled")

    page = visit.go(f"#/jobs/{running}")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".state")).to_have_text("canceled")
    assert [service.client.job(job).state for job in (running, waiting)] == ["canceled", "canceled"]


def test_a_failed_job_says_what_to_do(visit, service, tmp_path, picture):
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"a.weight": torch.full((64, 48), torch.nan), "b.weight": torch.rand(64, 48)}))
    job = service.client.submit(service.client.upload(path), {"rank": {"budget": 0.4}}).id
    page = visit.go(f"#/jobs/{job}")
    expect(page.locator(".state")).to_have_text("failed")

    expect(page.get_by_role("alert")).to_contain_text(service.client.job(job).error.detail)
    picture(page, "failed")
    assert page.get_by_role("button", name="Resume").count() == 0
    page.get_by_role("link", name="Change the spec").click()
    expect(shown_parameters(page)).to_contain_text("saved")
    assert spec_of(page) == {"method": "svd", "rank": {"budget": 0.4}}


def test_jobs_are_compared_from_their_family_tree(visit, compared, picture):
    checkpoint, jobs = compared
    page = visit.go(f"#/checkpoints/{checkpoint}")
    tree = page.get_by_role("region", name="Jobs of this checkpoint")
    expect(tree.get_by_role("link", name="rank.ratio 0.6 → 0.4")).to_be_visible()
    expect(tree.get_by_role("link", name='method "svd" → "pivot"')).to_be_visible()
    for job in jobs:
        page.get_by_label(f"Compare {job}").check()
    picture(page, "checkpoint")
    page.get_by_role("link", name="Compare", exact=True).click()

    page.get_by_role("heading", name="3 jobs compared").wait_for()
    differing = page.get_by_role("region", name="Specs").locator("tr.differs")
    assert [row.split("differs")[0].strip() for row in differing.all_inner_texts()] == [
        "method",
        "rank.ratio",
    ]
    expect(page.get_by_role("img", name="Quality against size of the compared jobs")).to_be_visible()
    assert page.get_by_role("region", name="Layers").locator("tbody tr").count() == 4
    picture(page, "compare")


def test_names_from_files_and_addresses_stay_text(visit, service):
    visit.refusals_are_right = True
    page = visit.go()
    drop(page, f"{markup(3)}.safetensors", hostile_file())
    page.get_by_role("button", name="Compress").click()
    page.get_by_role("heading", name="Run it").wait_for()
    expect(page.get_by_text(markup(1)).first).to_be_visible()
    checkpoint = service.client.job(page.url.rpartition("/")[2]).checkpoint
    page.goto(f"{service.url}/#/checkpoints/{checkpoint}")
    page.get_by_text("Each kind of layer in figures").click()
    expect(page.get_by_role("region", name="Layers").get_by_text(markup(1))).to_be_visible()
    for address in (
        f"#/jobs/{markup(4)}",
        f"#/checkpoints/{markup(5)}",
        f"#/compare?jobs={markup(6)},b",
        f"#/{markup(7)}",
    ):
        page.goto(f"{service.url}/{address}")
        page.locator("main h1").wait_for()
        assert page.locator("main img, main script").count() == 0


def test_an_upload_goes_on_after_a_reload(visit, service, minilm, picture):
    page = visit.go()
    network = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 12 * MB}
    network.send("Network.emulateNetworkConditions", slow)
    page.locator("#files").set_input_files(minilm)
    expect(page.get_by_text("At half of each layer: 22.7 M → 17.3 M parameters")).to_be_visible()
    picture(page, "upload")
    sent = "JSON.parse(localStorage['eckart.uploads'] ?? '[]').some((one) => one.offset > 0)"
    service.await_true(lambda: page.evaluate(sent))
    page.reload()
    expect(page.get_by_text("Unfinished uploads")).to_be_visible()
    picture(page, "unfinished")
    network.send("Network.emulateNetworkConditions", slow | {"uploadThroughput": -1})
    offsets = []
    page.on("request", lambda request: offsets.append(int(request.headers.get("upload-offset", -1))))
    page.locator("#files").set_input_files(minilm)
    page.locator("#size").wait_for()

    checkpoint = page.locator("h1").inner_text()
    stored = next(one for one in service.client.checkpoints() if one.id == checkpoint)
    assert [file.size_bytes for file in stored.files] == [minilm.stat().st_size]
    assert min(offset for offset in offsets if offset >= 0) > 0
    assert page.evaluate("localStorage['eckart.uploads']") == "[]"


def test_a_folder_is_stored_under_its_name_without_subfolders(visit, service, tmp_path):
    folder = tmp_path / "with subfolders"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "model.safetensors").write_bytes(save({"layers.0.weight": torch.rand(64, 48)}))
    page = visit.go()
    page.locator("#folder").set_input_files(folder)
    page.locator("#size").wait_for()

    assert page.locator("h1").inner_text() == "with-subfolders"
    stored = next(one for one in service.client.checkpoints() if one.id == "with-subfolders")
    assert sorted(file.name for file in stored.files) == ["config.json", "model.safetensors"]


def test_shards_that_are_missing_are_named_and_taken_later(visit):
    files = [
        {"name": name, "mimeType": "application/octet-stream", "buffer": content}
        for name, content in sharded_set(3).items()
    ]
    missing = [file["name"] for file in files[1:3]]
    visit.refusals_are_right = True
    page = visit.go()
    page.locator("#files").set_input_files([files[0], files[3]])
    expect(page.get_by_text("Files are missing")).to_be_visible()
    assert page.locator(".notice li").all_inner_texts() == missing
    page.locator("#files").set_input_files(files[1:3])

    expect(shown_parameters(page)).to_contain_text("saved")


def test_what_is_no_checkpoint_is_not_sent(visit):
    page = visit.go()
    drop(page, "model.bin", b"pickled")

    expect(page.get_by_role("alert")).to_contain_text("never opened")
    page.get_by_role("button", name="Choose again").click()
    expect(page.locator(".drop")).to_be_visible()


def test_a_damaged_file_is_refused_before_it_is_sent(visit, service):
    visit.refusals_are_right = True
    page = visit.go()
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    drop(page, "damaged.safetensors", b"no header at all, and then some")

    expect(page.get_by_role("alert")).to_contain_text("damaged.safetensors")
    assert not any("/v1/uploads" in url for url in sent)


def test_a_file_that_arrives_whole_is_the_file(visit, service):
    content = save({"layers.0.weight": torch.arange(48.0 * 64).reshape(64, 48)})
    page = visit.go()
    drop(page, "Modèle (1).SAFETENSORS", content)
    page.locator("#size").wait_for()

    assert page.locator("h1").inner_text() == "Modele-1"
    job = service.client.submit("Modele-1", {"method": "svd", "rank": 48})
    assert load(content).keys() == {"layers.0.weight"}
    assert service.client.wait(job.id).summary.parameters_before == 48 * 64
