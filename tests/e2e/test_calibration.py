"""A model of GPT-2's shape from its hooks to its factors, through the whole service."""

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from eckart import JobFailed, calibrate
from eckart.torch import load_compressed
from tests.worker.test_calibration import Gpt2

TRANSPOSED = {"transposed": ["transformer.h.*"]}
BATCHES = [torch.randint(50, (8, 16), generator=torch.Generator().manual_seed(i)) for i in range(8)]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """Make a model, its checkpoint and the Gram matrices of its layers' inputs."""
    torch.manual_seed(0)
    model, directory = Gpt2(48).eval(), tmp_path_factory.mktemp("gpt2")
    source = directory / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, source)
    return model, source, calibrate(model, BATCHES, directory / "grams.safetensors")


def centered_grams(path):
    """Return G - Nμμᵀ of each layer, since the biases make up for the mean error."""
    stored = {name: tensor.double() for name, tensor in load_file(path).items()}
    means = {
        name: stored[f"{name}.mean"]
        for name in (n.removesuffix(".gram") for n in stored if n.endswith("gram"))
    }
    return {
        name: stored[f"{name}.gram"] - stored[f"{name}.count"] * torch.outer(mean, mean)
        for name, mean in means.items()
    }


def closed_form(weight, gram, rank):
    """Return the least relative error of the outputs, by the roots of the Gram matrix."""
    values, vectors = torch.linalg.eigh(gram.double())
    outputs = torch.linalg.svdvals(weight.double() @ (vectors * values.clamp_min(0).sqrt()))
    return float(outputs[rank:].norm() / outputs.norm())


@pytest.mark.parametrize(
    "rank", [{"ratio": 0.4}, {"budget": 0.4}, {"error": 0.3}], ids=lambda r: next(iter(r))
)
def test_every_output_error_is_the_closed_form_and_the_plan_of_the_next_job_knows_the_ranks(
    service, gpt2, rank
):
    _, source, grams = gpt2
    job = service.client.compress(source, {"rank": rank, **TRANSPOSED}, calibration=grams)
    report = service.client.report(job.id)
    weights, matrices = load_file(source), centered_grams(grams)
    factored = [layer for layer in report.layers if layer.outcome == "factored"]

    assert len(report.layers) == 8
    assert factored
    for layer in factored:
        assert (layer.calibrated, layer.transposed) == (True, True)
        best = closed_form(weights[layer.tensor].T, matrices[layer.name], layer.rank)
        assert layer.weighted_error == pytest.approx(best, rel=1e-3)
        assert layer.optimal_weighted_error == pytest.approx(best, rel=1e-3)
    if "error" in rank:
        assert all(layer.weighted_error <= 0.3 for layer in factored)
        return
    plan = service.client.plan(job.checkpoint, job.spec)
    assert plan.totals.exact
    assert [layer.rank for layer in plan.layers] == [layer.rank for layer in report.layers]


def test_the_loaded_model_is_nearer_to_the_whole_one_than_without_calibration(service, gpt2, tmp_path):
    model, source, grams = gpt2
    distances = {}
    for name, calibration in (("calibrated", grams), ("plain", None)):
        spec = {"rank": {"ratio": 0.5}, **TRANSPOSED}
        job = service.client.compress(source, spec, calibration=calibration)
        service.client.download(job.id, tmp_path / name)
        loaded = load_compressed(Gpt2(48).eval(), tmp_path / name)
        with torch.no_grad():
            distances[name] = sum(float((loaded(batch) - model(batch)).norm()) for batch in BATCHES)

    assert distances["calibrated"] < 0.9 * distances["plain"]


def test_a_calibration_fits_where_only_biases_tell_the_orientation(service, gpt2):
    _, source, grams = gpt2
    plan = service.client.plan(service.client.upload(source), {"rank": 4}, calibration=grams)

    assert plan.layers
    assert all(layer.transposed and layer.calibrated for layer in plan.layers)


def test_a_calibration_of_another_orientation_is_refused_with_the_way_out(service, gpt2, tmp_path):
    _, source, grams = gpt2
    weights = {name: tensor for name, tensor in load_file(source).items() if name.endswith(".weight")}
    save_file(weights, tmp_path / "without-biases.safetensors")
    checkpoint = service.client.upload(tmp_path / "without-biases.safetensors")
    body = {"checkpoint": checkpoint, "spec": {"rank": 4, "calibration": service.client.upload(grams)}}
    refused = httpx.post(f"{service.url}/v1/jobs", json=body)

    assert refused.status_code == 422
    assert refused.json()["type"] == "urn:eckart:problem:invalid-calibration:gram-shape"
    assert "to `transposed`" in refused.json()["detail"]


def test_values_of_no_gram_matrix_fail_the_job_with_the_layer_and_the_remedy(service, gpt2, tmp_path):
    _, source, grams = gpt2
    spoiled = load_file(grams)
    name = "transformer.h.1.mlp.c_fc"
    spoiled[f"{name}.gram"] = -spoiled[f"{name}.gram"]
    save_file(spoiled, tmp_path / "spoiled.safetensors")
    with pytest.raises(JobFailed, match=f'"{name}" is not positive') as failure:
        service.client.compress(
            source, {"rank": 4, **TRANSPOSED}, calibration=tmp_path / "spoiled.safetensors"
        )

    job = failure.value.job
    assert job.error.type == "urn:eckart:problem:invalid-calibration:gram-values"
    assert job.attempt == 1
    assert service.layers_begun(job.id) == {}
