"""An adapter through the whole service: from a base and its fine-tune to a folder for PEFT."""

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from eckart import JobFailed

SHAPES = {"h.0.up.weight": (192, 160), "h.0.down.weight": (160, 192), "norm.weight": (160,)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Save a model and its fine-tune; return both paths and the differences."""
    folder, generator = tmp_path_factory.mktemp("pair"), torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    spectrum = torch.logspace(0, -3, 160)
    changes = {
        name: torch.randn(shape, generator=generator) * (spectrum if shape[-1] == 160 else spectrum[:, None])
        for name, shape in SHAPES.items()
        if len(shape) == 2
    }
    save_file(base, folder / "base.safetensors")
    save_file({name: base[name] + changes.get(name, 0.0) for name in base}, folder / "tuned.safetensors")
    return folder / "base.safetensors", folder / "tuned.safetensors", changes


def test_a_job_gives_an_adapter_with_the_errors_of_its_report(service, pair, tmp_path):
    base, tuned, changes = pair
    job = service.client.compress(tuned, {"rank": {"energy": 0.9}, "layout": "adapter"}, base=base)
    paths = service.client.download(job.id, tmp_path / "adapter")
    report = service.client.report(job.id)

    assert {path.name for path in paths} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "report.json",
    }
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert [layer.name for layer in report.layers if layer.rank] == ["h.0.down", "h.0.up"]
    for layer in report.layers:
        factors = [stored[f"base_model.model.{layer.name}.lora_{side}.weight"] for side in "BA"]
        change = changes[layer.tensor]
        error = torch.linalg.norm(change - factors[0] @ factors[1]) / torch.linalg.norm(change)
        assert layer.relative_error == pytest.approx(float(error), rel=1e-3)
    single = httpx.get(f"{service.url}/v1/jobs/{job.id}/checkpoint")
    assert single.content == (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    assert [file.name for file in report.base] == ["base.safetensors"]

    plan = service.client.plan(job.checkpoint, job.spec)
    assert plan.totals.exact
    assert [layer.rank for layer in plan.layers] == [layer.rank for layer in report.layers]


def test_the_spectra_of_a_difference_are_not_those_of_the_weight(service, pair):
    base, tuned, _ = pair
    rule = {"rank": {"energy": 0.9}}
    plain = service.client.compress(tuned, rule)
    ids = [service.client.upload(path) for path in (base, tuned)]
    other = {**rule, "layout": "adapter", "base": ids[1]}

    assert service.client.plan(plain.checkpoint, rule).totals.exact
    assert not service.client.plan(ids[0], other).totals.exact


def test_a_checkpoint_that_equals_its_base_fails_the_job_with_the_reason(service, pair, tmp_path):
    base, _, _ = pair
    # Another file: only the job finds that its weights are the same.
    copy = tmp_path / "copy.safetensors"
    save_file(load_file(base), copy, {"note": "a copy"})
    with pytest.raises(JobFailed, match="equal those of the base") as failure:
        service.client.compress(copy, {"rank": 4, "layout": "adapter"}, base=base)

    assert failure.value.job.error.type == "urn:eckart:problem:invalid-base:no-difference"
    assert failure.value.job.attempt == 1
