"""Each view of the page for everybody: screen readers, both themes, phones, keys, and large models."""

import pytest

from service.access.browsers import PAGE_POLICY
from tests.browser import visiting
from tests.e2e.ui.conftest import NUMBERS, large_file
from tests.e2e.ui.test_page import drop, expect, shown_parameters, slide, spec_of
from tests.service.files import MODEL
from tests.service.test_prefix import proxy

axe = pytest.importorskip("axe_playwright_python.sync_playwright")

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
KEYS = "alice:the-secret-of-alice"
MOST_ELEMENTS = 6000
LAYERS = 10_000


def views_of(compared):
    """Name each view, its address, and what is there once it is complete."""
    checkpoint, jobs = compared
    return {
        "home": ("#/", "text=Stored checkpoints >> .. >> a"),
        "checkpoint": (f"#/checkpoints/{checkpoint}", "text=What became of it"),
        "job": (f"#/jobs/{jobs[0]}", "text=Diagnosis"),
        "jobs": ("#/jobs", "text=Choose two to five"),
        "compare": (f"#/compare?jobs={','.join(jobs)}", "text=Layer by layer"),
        "nothing": ("#/jobs/nobody", "text=Back to the checkpoints"),
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_view_has_a_fault_that_axe_knows(browser, service, compared, theme, picture):
    with visiting(browser, service.url, viewport=DESK, color_scheme=theme) as visit:
        visit.refusals_are_right = True
        for name, (address, there) in views_of(compared).items():
            page = visit.go(address)
            page.locator(there).first.wait_for()
            page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
            found = axe.Axe().run(page).response["violations"]
            picture(page, f"{name}-{theme}")
            told = [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found]
            assert told == [], name


def test_no_view_is_wider_than_a_phone(browser, service, compared, picture):
    with visiting(browser, service.url, viewport=PHONE, has_touch=True) as visit:
        visit.refusals_are_right = True
        for name, (address, there) in views_of(compared).items():
            page = visit.go(address)
            page.locator(there).first.wait_for()
            picture(page, f"{name}-phone")
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name


def test_a_theme_that_is_chosen_stays(visit):
    page = visit.go()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for _ in range(2):
        page.get_by_role("button", name="Theme").click()
    page.reload()

    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


def test_the_page_keeps_to_its_policy(visit):
    answer = visit.page.goto(visit.url)

    assert answer.headers["content-security-policy"] == PAGE_POLICY


def test_a_large_model_is_shown_in_few_elements(visit, service, tmp_path, picture):
    path = tmp_path / "model.safetensors"
    path.write_bytes(large_file(LAYERS))
    checkpoint = service.client.upload(path, id=f"large-{next(NUMBERS)}")
    page = visit.go(f"#/checkpoints/{checkpoint}")
    expect(page.get_by_text(f"{LAYERS:,} replaced")).to_be_visible()
    slide(page, 0.4)
    expect(page.locator("[aria-busy=false]")).to_be_visible()
    page.get_by_text("Each kind of layer in figures").click()

    assert spec_of(page)["rank"] == {"ratio": 0.4}
    assert page.evaluate("document.querySelectorAll('*').length") < MOST_ELEMENTS
    picture(page, "large")


def test_the_page_works_below_the_path_of_a_proxy(browser, start_api):
    service = start_api()
    stored = service.stored(MODEL)
    with (
        proxy(service, headers={"X-Forwarded-Prefix": "/eckart"}) as url,
        visiting(browser, url, viewport=DESK) as visit,
    ):
        page = visit.go()
        page.get_by_role("link", name=stored, exact=True).click()
        expect(shown_parameters(page)).to_contain_text("saved")
        page.get_by_role("button", name="Compress").click()
        expect(page.get_by_text("Next in the queue.")).to_be_visible()


def test_a_key_is_asked_for_and_sent_with_everything(browser, start_api, picture):
    guarded = start_api(api_keys=KEYS)
    name, _, secret = KEYS.partition(":")
    with visiting(browser, guarded.url, viewport=DESK) as visit:
        visit.refusals_are_right = True
        page = visit.go()
        dialog = page.get_by_role("dialog")
        for given in ("wrong", secret):
            expect(dialog).to_be_visible()
            picture(page, "key")
            dialog.get_by_label("Key", exact=True).fill(given)
            dialog.get_by_role("button", name="Use this key").click()
        expect(page.get_by_text("None yet.")).to_be_visible()
        visit.refusals_are_right = False

        drop(page, "model.safetensors", MODEL)
        page.locator("#size").wait_for()
        expect(shown_parameters(page)).to_contain_text("saved")
        page.get_by_role("button", name="Compress").click()
        expect(page.get_by_text("Next in the queue.")).to_be_visible()
        job = page.url.rpartition("/")[2]
        claim = guarded.jobs.of(name).claim(job, "token")
        expect(page.locator(".state")).to_have_text("running")
        assert claim is not None
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator(".state")).to_have_text("canceled")
        assert secret not in page.evaluate("JSON.stringify(localStorage) + location.href + document.cookie")

        page.reload()
        expect(page.locator(".state")).to_have_text("canceled")
        visit.refusals_are_right = True
        page.get_by_role("button", name="Forget the key").click()
        expect(dialog).to_be_visible()
