"""What the page says that a plan costs, beside what the job then measures."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from tests.e2e.ui.conftest import NUMBERS

expect = pytest.importorskip("playwright.sync_api").expect
SHAPES = {"layers.0.up": (96, 64), "layers.0.down": (64, 96), "layers.1.up": (96, 64), "head": (48, 64)}
TOKENS = 400


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * torch.linspace(
        2, 0.1, shape[0]
    ).unsqueeze(1)


@pytest.fixture
def calibrated(service, tmp_path):
    """Store a checkpoint, and statistics of the inputs of its layers, and of the gradients of all but one."""
    weights, statistics = {}, {}
    for name, (outputs, inputs) in SHAPES.items():
        weights[f"{name}.weight"] = random(outputs, inputs)
        x, g = random(inputs, TOKENS), random(outputs, TOKENS) / 10
        statistics |= {f"{name}.gram": x @ x.T, f"{name}.count": torch.tensor([float(TOKENS)])}
        if name != "head":
            statistics[f"{name}.grad_gram"] = g @ g.T
    ids = []
    for kind, tensors in (("model", weights), ("grams", statistics)):
        save_file(tensors, tmp_path / f"{kind}.safetensors")
        ids.append(service.client.upload(tmp_path / f"{kind}.safetensors", id=f"{kind}-{next(NUMBERS)}"))
    return ids


def shown_cost(page, spec):
    """Give the page a spec, and read what its plan costs."""
    page.locator("#spec").fill(json.dumps(spec))
    figure = page.locator(".figures div", has_text="Predicted loss")
    expect(figure).to_contain_text("from the singular values")
    expect(page.locator("[aria-busy=false]")).to_be_visible()
    return float(re.search(r"[\d.e-]+", figure.locator("dd").inner_text())[0])


def test_where_gradients_are_known_the_page_predicts_the_loss_that_the_job_measures(
    visit, service, calibrated, picture
):
    checkpoint, grams = calibrated
    spec = {"rank": {"ratio": 0.7}, "calibration": grams}
    service.client.wait(service.client.submit(checkpoint, spec).id)
    page = visit.go(f"#/checkpoints/{checkpoint}")
    shown_cost(page, spec)
    expect(page.get_by_role("heading", name="Predicted loss against size")).to_be_visible()
    expect(page.get_by_text("1 layer has no curve here")).to_be_visible()
    picture(page, "predicted-loss")

    for ratio in (0.7, 0.3):
        wanted = spec | {"rank": {"ratio": ratio}}
        measured = service.client.wait(service.client.submit(checkpoint, wanted).id).summary.predicted_loss
        assert shown_cost(page, wanted) == pytest.approx(measured, rel=0.02)


def test_a_method_that_chooses_columns_costs_at_least_what_is_shown(visit, service, compared):
    checkpoint, _ = compared
    page = visit.go(f"#/checkpoints/{checkpoint}")
    expect(page.get_by_text("from the singular values", exact=True)).to_be_visible()
    page.locator("#spec").fill('{"method": "cx", "rank": {"ratio": 0.5}}')
    figure = page.locator(".figures div", has_text="Error")
    expect(figure).to_contain_text("at least")
    floor = float(re.search(r"[\d.]+", figure.locator("dd").inner_text())[0])
    job = service.client.submit(checkpoint, {"method": "cx", "rank": {"ratio": 0.5}})

    assert service.client.wait(job.id).summary.relative_error >= floor - 0.001
    page.locator("#spec").fill('{"method": "int8"}')
    expect(page.get_by_text("These layers have no curve here")).to_be_visible()
