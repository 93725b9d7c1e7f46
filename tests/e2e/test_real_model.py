"""A real model through the whole service, checked by means of our own code as little as possible."""

import hashlib
import json
import re
import subprocess
from math import sqrt
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

README = Path(__file__).parents[2] / "README.md"
# The contract's selection takes 6 matrices in each of 6 blocks, and the pooler's.
LAYERS = 37
SPECS = {
    "svd": {"method": "svd", "rank": {"ratio": 0.5}},
    "cx": {"method": "cx", "rank": {"ratio": 0.5}},
    "cur": {"method": "cur", "rank": {"ratio": 0.5}},
}


@pytest.fixture(scope="module")
def stored(service, minilm):
    return service.client.upload(minilm, id="minilm")


@pytest.fixture(scope="module", params=SPECS)
def result(request, service, stored, tmp_path_factory):
    """Run a job to its end; give its method, report and directory."""
    job = service.client.compress(stored, SPECS[request.param])
    directory = tmp_path_factory.mktemp(request.param)
    service.client.download(job.id, directory)
    return request.param, service.client.report(job.id), directory


def dense(tensors, name):
    """Multiply a layer's factors out in float64."""
    factors = []
    while f"{name}.{len(factors)}.weight" in tensors:
        factors.append(tensors[f"{name}.{len(factors)}.weight"].double())
    product = factors[0]
    for factor in factors[1:]:
        product = factor @ product
    return product


def test_every_error_is_what_numpy_finds_and_svd_is_within_1e4_of_the_optimum(result, minilm, spectra):
    method, report, directory = result
    before, after = load_file(minilm), load_file(directory / "model.safetensors")
    squared_error = squared_norm = 0.0

    assert report.totals.layers_factored == len(report.layers) == LAYERS
    for layer in report.layers:
        weight = before[layer.tensor].double()
        error = float(torch.linalg.norm(weight - dense(after, layer.name)))
        norm = float(torch.linalg.norm(weight))
        optimum = sqrt((spectra[layer.tensor][layer.rank :] ** 2).sum()) / norm
        assert layer.relative_error == pytest.approx(error / norm, rel=1e-5)
        assert layer.optimal_error == pytest.approx(optimum, rel=1e-5)
        assert layer.relative_error >= optimum * (1 - 1e-6)
        if method == "svd":
            assert layer.relative_error <= optimum * (1 + 1e-4)
        squared_error += error**2
        squared_norm += norm**2
    assert report.totals.relative_error == pytest.approx(sqrt(squared_error / squared_norm), rel=1e-5)


def test_the_totals_count_the_files_as_they_are(result, minilm):
    _, report, directory = result
    after = load_file(directory / "model.safetensors")
    before = load_file(minilm)

    assert report.totals.parameters_before == sum(tensor.numel() for tensor in before.values())
    assert report.totals.parameters_after == sum(tensor.numel() for tensor in after.values())
    assert report.totals.bytes_after == sum(tensor.nbytes for tensor in after.values())
    (file,) = report.output.files
    data = (directory / file.name).read_bytes()
    assert file.size_bytes == len(data)
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert report.input.files[0].sha256 == hashlib.sha256(minilm.read_bytes()).hexdigest()


def test_cur_and_cx_keep_columns_and_rows_verbatim(result, minilm):
    method, report, directory = result
    if method == "svd":
        assert report.layers[0].columns is None
        return
    before, after = load_file(minilm), load_file(directory / "model.safetensors")
    for layer in report.layers:
        last = 2 if method == "cur" else 1
        columns = list(layer.columns)
        assert columns == sorted(set(columns))
        assert after[f"{layer.name}.{last}.weight"].equal(before[layer.tensor][:, columns])
        if method == "cur":
            assert after[f"{layer.name}.0.weight"].equal(before[layer.tensor][list(layer.rows)])


def test_the_result_loads_strictly_into_stock_modules(result, minilm):
    from eckart.torch import load_compressed

    _, report, directory = result
    before = load_file(minilm)
    model = stock_modules(before)
    load_compressed(model, directory / "model.safetensors")

    after = load_file(directory / "model.safetensors")
    x = torch.randn(3, 384, generator=torch.Generator().manual_seed(0))
    name = report.layers[1].name
    expected = x.double() @ dense(after, name).T + before[name + ".bias"].double()
    torch.testing.assert_close(model.get_submodule(name)(x).double(), expected, atol=1e-4, rtol=1e-4)


def stock_modules(tensors):
    """Build a tree of stock modules that has exactly these tensors."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        module = root
        for step in path.split("."):
            if step not in module._modules:
                module.add_module(step, torch.nn.Module())
            module = module._modules[step]
        if tensor.is_floating_point():
            module.register_parameter(leaf, torch.nn.Parameter(torch.zeros_like(tensor)))
        else:
            module.register_buffer(leaf, torch.zeros_like(tensor))
    for path, module in list(root.named_modules()):
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() == 2 and "embed" not in path:
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
            root.set_submodule(path, linear)
    return root


def test_the_same_request_twice_gives_the_same_bytes(result, service, stored):
    method, report, _ = result
    again = service.client.compress(stored, SPECS[method])

    assert service.client.report(again.id).output.files == report.output.files


def test_errors_are_ordered_svd_cx_cur(service, stored):
    errors = [
        service.client.compress(stored, {"method": method, "rank": 64}).summary.relative_error
        for method in ("svd", "cx", "cur")
    ]

    assert errors == sorted(errors)


def test_the_metadata_is_enough_to_know_what_was_done(result):
    _, report, directory = result
    with safe_open(directory / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    layers = json.loads(metadata["eckart"])["layers"]

    assert metadata["format"] == "pt"
    assert {name: layer["rank"] for name, layer in layers.items()} == {x.name: x.rank for x in report.layers}


def readme_lines(word, service, job="J0"):
    """Take the block of shell lines with this word from the README, for this service and this job."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
    (block,) = (block for block in blocks if word in block)
    return re.sub(r"\bJ[0-9a-f]{32}\b", job, block.replace("http://127.0.0.1:8000", service.url))


def run_lines(lines, directory):
    """Run shell lines and return what they print; lines that never end fail."""
    return subprocess.run(
        ["bash", "-c", lines], cwd=directory, capture_output=True, text=True, timeout=120, check=True
    ).stdout


def test_the_curl_lines_of_the_readme_work_as_printed(service, minilm, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(minilm)
    job = json.loads(run_lines(readme_lines("-F checkpoint=", service), tmp_path))
    report = json.loads(run_lines(readme_lines("$job/checkpoint", service, job["id"]), tmp_path))
    assert report["totals"]["layers_factored"] == LAYERS
    (file,) = report["output"]["files"]
    result = (tmp_path / "compressed.safetensors").read_bytes()
    assert hashlib.sha256(result).hexdigest() == file["sha256"]

    printed = run_lines(readme_lines("curl -T", service), tmp_path)
    stored, end = json.JSONDecoder().raw_decode(printed)
    assert stored["sha256"] == hashlib.sha256(minilm.read_bytes()).hexdigest()
    job = json.loads(printed[end:])

    canceled = service.client.cancel(job["id"])
    problem = json.loads(run_lines(readme_lines("$job/checkpoint", service, job["id"]), tmp_path))
    # On a busy machine the job may have ended before.
    assert canceled.state == "succeeded" or problem["detail"].startswith("The job is canceled")
