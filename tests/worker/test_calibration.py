"""Calibrated and transposed layers in worker/: from files to files, and every invalid calibration."""

import json
from math import sqrt

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from eckart import calibrate
from eckart.torch import load_compressed
from schemas.planning.references import CalibrationError, References
from schemas.spec import CompressionSpec
from state.checkpoints.store import CheckpointStore
from state.data_dir import DataDir
from state.jobs.records import NewJob
from state.jobs.store import JobStore
from tests.worker.test_attempt import CALM
from worker.attempt import run_attempt
from worker.local import compress_local
from worker.settings import Settings

SHAPES = {"a": (48, 64), "b": (80, 40), "c": (32, 32)}


@pytest.fixture
def anisotropic(gaussian):
    """Return inputs [n, samples] with most energy in few directions."""

    def make(n, samples=400):
        turn = torch.linalg.qr(gaussian(n, n, dtype=torch.float64)).Q
        return turn @ (torch.logspace(0, -2, n, dtype=torch.float64)[:, None] * gaussian(n, samples).double())

    return make


@pytest.fixture
def model(save, gaussian):
    """Return a checkpoint of three layers and its tensors."""
    tensors = {f"{name}.weight": gaussian(*shape) for name, shape in SHAPES.items()}
    return save(tensors | {"a.bias": gaussian(48)}), tensors


def product(tensors, name, count=2):
    dense = tensors[f"{name}.0.weight"].double()
    for position in range(1, count):
        dense = tensors[f"{name}.{position}.weight"].double() @ dense
    return dense


def output_error(weight, approximation, x):
    return float(
        torch.linalg.norm((weight.double() - approximation) @ x) / torch.linalg.norm(weight.double() @ x)
    )


def closed_form(weight, x, rank):
    values = torch.linalg.svdvals(weight.double() @ x)
    return float(values[rank:].norm() / values.norm())


@pytest.mark.parametrize("gram_dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", ["factored", "dense"])
def test_both_errors_are_reported_and_anyone_recomputes_them(
    model, save, compress, anisotropic, gram_dtype, layout
):
    source, weights = model
    inputs = {name: anisotropic(SHAPES[name][1]) for name in ("a", "b")}
    grams = save({f"{n}.gram": (x @ x.T).to(gram_dtype) for n, x in inputs.items()}, "grams.safetensors")
    result = compress(source, calibration=grams, layout=layout, rank=10)
    tensors, squared_error, squared_norm = result.tensors(), 0.0, 0.0

    for layer in result.report.layers:
        weight = weights[layer.tensor].double()
        dense = product(tensors, layer.name) if layout == "factored" else tensors[layer.tensor].double()
        plain = float(torch.linalg.norm(weight - dense) / torch.linalg.norm(weight))
        assert layer.relative_error == pytest.approx(plain, rel=1e-5)
        assert layer.calibrated is (layer.name in inputs)
        if layer.name not in inputs:
            assert (layer.weighted_error, layer.optimal_weighted_error) == (None, None)
            assert layer.optimal_error == pytest.approx(plain, rel=1e-3)
            continue
        x = inputs[layer.name]
        assert layer.weighted_error == pytest.approx(output_error(weight, dense, x), rel=1e-4)
        assert layer.weighted_error == pytest.approx(closed_form(weight, x, 10), rel=1e-3)
        assert layer.optimal_weighted_error == pytest.approx(closed_form(weight, x, 10), rel=1e-3)
        assert layer.optimal_error is None
        expected = torch.linalg.svdvals(weight @ x)
        assert layer.singular_values[:10] == pytest.approx(expected[:10].tolist(), rel=1e-4)
        squared_error += float(((weight - dense) @ x).square().sum())
        squared_norm += float((weight @ x).square().sum())
    assert result.report.totals.weighted_error == pytest.approx(sqrt(squared_error / squared_norm), rel=1e-4)
    (file,) = result.report.calibration
    assert (file.name, file.size_bytes) == ("grams.safetensors", grams.stat().st_size)


def test_calibrated_factors_have_a_smaller_error_on_these_inputs_than_plain_ones(
    model, save, compress, anisotropic
):
    source, weights = model
    inputs = {name: anisotropic(shape[1]) for name, shape in SHAPES.items()}
    grams = save({f"{name}.gram": x @ x.T for name, x in inputs.items()}, "grams.safetensors")
    plain, calibrated = compress(source, rank=8), compress(source, rank=8, calibration=grams)

    for name, x in inputs.items():
        before, after = (
            output_error(weights[f"{name}.weight"], product(result.tensors(), name), x)
            for result in (plain, calibrated)
        )
        assert after < 0.8 * before


def test_rank_rules_go_by_the_outputs(model, save, compress, anisotropic):
    source, weights = model
    x = anisotropic(64)
    grams = save({"a.gram": x @ x.T}, "grams.safetensors")
    result = compress(source, calibration=grams, rank={"error": 0.2}, include=["a"])
    (layer,) = result.report.layers

    assert layer.weighted_error <= 0.2
    assert closed_form(weights["a.weight"], x, layer.rank - 1) > 0.2
    assert layer.relative_error > 0.2


@pytest.mark.parametrize("method", ["cx", "cur"])
def test_columns_and_rows_are_judged_by_the_outputs_too(model, save, compress, anisotropic, method):
    source, weights = model
    x = anisotropic(64)
    grams = save({"a.gram": x @ x.T}, "grams.safetensors")
    result = compress(source, calibration=grams, rank=10, method=method, include=["a"])
    (layer,) = result.report.layers
    dense = product(result.tensors(), "a", 3 if method == "cur" else 2)

    assert layer.weighted_error == pytest.approx(output_error(weights["a.weight"], dense, x), rel=1e-4)
    assert layer.optimal_weighted_error <= layer.weighted_error


def test_an_interrupted_run_with_another_calibration_is_not_resumed(model, save, compress, anisotropic):
    source, _ = model
    results = [
        compress(source, calibration=save({"a.gram": x @ x.T}, f"{i}.safetensors"), rank=4).tensors()
        for i, x in enumerate((anisotropic(64), anisotropic(64)))
    ]

    assert not torch.equal(results[0]["a.0.weight"], results[1]["a.0.weight"])
    assert torch.equal(results[0]["b.0.weight"], results[1]["b.0.weight"])


class Conv1D(nn.Module):
    """A layer like GPT-2's Conv1D: the weight is stored as [inputs, outputs]."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).reshape(*x.shape[:-1], self.nf)


class Block(nn.Module):
    """The linear layers of one block of GPT-2."""

    def __init__(self, n):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n)
        self.attn = nn.ModuleDict({"c_attn": Conv1D(3 * n, n), "c_proj": Conv1D(n, n)})
        self.mlp = nn.ModuleDict({"c_fc": Conv1D(4 * n, n), "c_proj": Conv1D(n, 4 * n)})

    def forward(self, x):
        query, key, value = self.attn["c_attn"](self.ln_1(x)).chunk(3, dim=-1)
        x = x + self.attn["c_proj"](torch.tanh(query * key) * value)
        return x + self.mlp["c_proj"](torch.relu(self.mlp["c_fc"](x)))


class Gpt2(nn.Module):
    """The names and the orientation of GPT-2's tensors."""

    def __init__(self, n=24):
        super().__init__()
        parts = {"wte": nn.Embedding(50, n), "wpe": nn.Embedding(16, n)}
        self.transformer = nn.ModuleDict(parts | {"h": nn.ModuleList(Block(n) for _ in range(2))})

    def forward(self, ids):
        x = self.transformer["wte"](ids) + self.transformer["wpe"].weight[: ids.shape[-1]]
        for block in self.transformer["h"]:
            x = block(x)
        return x


@pytest.fixture
def gpt2(save):
    torch.manual_seed(0)
    model = Gpt2().eval()
    return model, save({name: tensor.clone() for name, tensor in model.state_dict().items()})


IDS = torch.arange(12).reshape(2, 6)


def truncated(model, result, count):
    """Put the products of a result's factors into the dense model: Wᵀ = F₀F₁…, each stored transposed."""
    tensors = result.tensors()
    for layer in result.report.layers:
        dense = tensors[f"{layer.name}.0.weight"]
        for position in range(1, count):
            dense = dense @ tensors[f"{layer.name}.{position}.weight"]
        model.get_submodule(layer.name).weight.data = dense
    return model


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ({"method": "svd"}, 2),
        ({"method": "cx"}, 2),
        ({"method": "cur"}, 3),
        ({"method": "cur", "cur": {"storage": "two"}}, 2),
    ],
)
def test_gpt2_is_factored_in_its_own_orientation_and_computes_with_its_factors(gpt2, compress, spec, count):
    model, source = gpt2
    result = compress(source, transposed=["transformer.h.*"], rank=5, **spec)
    tensors = result.tensors()

    assert len(result.report.layers) == 8
    for layer in result.report.layers:
        n_in, n_out = model.get_submodule(layer.name).weight.shape
        assert (layer.shape, layer.transposed) == ((n_in, n_out), True)
        shapes = [tuple(tensors[f"{layer.name}.{i}.weight"].shape) for i in range(count)]
        assert shapes == [(n_in, 5), *[(5, 5)] * (count - 2), (5, n_out)]
        assert f"{layer.name}.{count - 1}.bias" in tensors
    loaded = load_compressed(Gpt2().eval(), result.directory)
    torch.testing.assert_close(loaded(IDS), truncated(model, result, count)(IDS), rtol=1e-4, atol=1e-4)
    chain = loaded.transformer["h"][0].attn["c_attn"]
    assert [type(part) for part in chain] == [Conv1D] * count
    state = loaded.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensors[name]) for name in state)


def test_a_transposed_weight_gives_the_same_as_its_transpose_would(save, gaussian, compress):
    weight = gaussian(48, 30)
    turned = compress(save({"a.weight": weight.T.contiguous()}, "t.safetensors"), transposed=["a"], rank=6)
    straight = compress(save({"a.weight": weight}), rank=6)

    for name in ("a.0.weight", "a.1.weight"):
        assert torch.equal(turned.tensors()[name], straight.tensors()[name].T)
    with safe_open(next(turned.directory.glob("*.safetensors")), "pt") as file:
        entry = json.loads(file.metadata()["eckart"])["layers"]["a"]
    assert (entry["shape"], entry["transposed"]) == ([30, 48], True)
    report, other = turned.report.layers[0], straight.report.layers[0]
    assert (report.relative_error, report.break_even_rank) == (other.relative_error, other.break_even_rank)


def test_the_dense_layout_keeps_a_transposed_weight_as_it_was_stored(gpt2, compress):
    model, source = gpt2
    result = compress(source, transposed=["transformer.h.*"], rank=5, layout="dense")

    for name, tensor in load_file(source).items():
        assert result.tensors()[name].shape == tensor.shape
    factors = truncated(model, compress(source, transposed=["transformer.h.*"], rank=5), 2)
    dense = Gpt2().eval()
    dense.load_state_dict(result.tensors())
    torch.testing.assert_close(dense(IDS), factors(IDS), rtol=1e-4, atol=1e-4)


def test_gpt2_is_calibrated_by_hooks_compressed_and_loaded(gpt2, compress, tmp_path):
    model, source = gpt2
    batches = [torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    grams = calibrate(model, batches, tmp_path / "grams.safetensors")
    spec = {"transposed": ["transformer.h.*"], "rank": {"ratio": 0.5}}
    result = compress(source, calibration=grams, **spec)

    assert all(layer.calibrated for layer in result.report.layers)
    assert result.report.warnings == ()
    plain = load_compressed(Gpt2().eval(), compress(source, **spec).directory)
    loaded = load_compressed(Gpt2().eval(), result.directory)
    with torch.no_grad():
        errors = [
            sum(float((each(batch) - model(batch)).norm()) for batch in batches) for each in (loaded, plain)
        ]
    assert errors[0] < 0.9 * errors[1]


def bad_values():
    good = torch.eye(32)
    with_nan, lopsided, indefinite = good.clone(), good.clone(), good.clone()
    with_nan[3, 4] = torch.nan
    lopsided[3, 4] = 0.5
    indefinite[3, 4] = indefinite[4, 3] = 2.0
    return [
        ("not finite", with_nan, "NaN or infinity; leave out the batch"),
        ("not symmetric", lopsided, "not symmetric"),
        ("not positive", indefinite, "not positive"),
        ("negative", -good, "not positive"),
        ("zero", torch.zeros(32, 32), "zeros alone"),
    ]


@pytest.mark.parametrize(
    ("kind", "gram", "words"), bad_values(), ids=lambda x: x if isinstance(x, str) else ""
)
def test_values_that_no_gram_matrix_has_are_refused_before_any_layer_is_factored(
    model, save, tmp_path, kind, gram, words
):
    source, _ = model
    seen = []
    grams = save({"c.gram": gram, "a.gram": torch.eye(64)}, "grams.safetensors")
    with pytest.raises(CalibrationError, match=words) as refusal:
        compress_local(
            source,
            tmp_path / "out",
            CompressionSpec(rank=4),
            references=References(calibration=grams),
            device=torch.device("cpu"),
            observe=lambda progress: seen.append(progress.layer),
        )

    assert '"c"' in refusal.value.detail
    assert refusal.value.fault == "gram-values"
    assert set(seen) == {None}
    assert not (tmp_path / "out").exists()


def store(checkpoints, name, path):
    with checkpoints.receive(name, path.name, content_bytes=None, limit_bytes=10**9) as upload:
        upload.write(path.read_bytes())
        upload.commit()
    return checkpoints.get(name).files


@pytest.fixture
def run(redis_server, tmp_path, model):
    """Run a job on the model with a calibration, as a worker does."""

    def attempt(grams, spoil=lambda _path: None, name="g"):
        data_dir = tmp_path / "data"
        checkpoints, jobs = CheckpointStore(data_dir), JobStore(redis_server.client(), data_dir)
        new = NewJob(
            checkpoint="m",
            spec=CompressionSpec(rank=4, calibration=name).document(),
            files=store(checkpoints, "m", model[0]),
            calibration_files=store(checkpoints, name, grams),
        )
        job_id = jobs.create(new).id
        spoil(DataDir(data_dir).checkpoint(name) / grams.name)
        run_attempt(job_id, jobs, Settings(data_dir=data_dir), worker="w", stopping=CALM)
        return jobs.get(job_id), DataDir(data_dir)

    return attempt


def test_a_job_is_calibrated_by_a_stored_checkpoint(run, save, anisotropic):
    x = anisotropic(64)
    record, layout = run(save({"a.gram": x @ x.T}, "grams.safetensors"))
    report = json.loads((layout.result(record.id, 1) / "report.json").read_text())

    assert record.state == "succeeded"
    assert record.summary.weighted_error == pytest.approx(report["layers"][0]["weighted_error"])
    assert [layer["calibrated"] for layer in report["layers"]] == [True, False, False]
    assert report["spec"]["calibration"] == "g"
    assert report["calibration"] == [file.model_dump() for file in record.calibration_files]


@pytest.mark.parametrize(
    ("kind", "gram", "words"), bad_values(), ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_job_fails_at_once_with_the_layer_and_the_remedy(run, save, kind, gram, words):
    record, layout = run(save({"c.gram": gram}, "grams.safetensors"))

    assert (record.state, record.attempt) == ("failed", 1)
    assert record.error.type == "urn:eckart:problem:invalid-calibration:gram-values"
    assert record.error.status == 422
    assert '"c"' in record.error.detail
    assert words in record.error.detail
    assert [error.pointer for error in record.error.errors] == ["/spec/calibration"]
    assert [path.name for path in layout.job(record.id).iterdir()] == ["job.json"]


def test_a_calibration_that_is_gone_fails_the_job_at_once(run, save):
    record, _ = run(save({"c.gram": torch.eye(32)}, "grams.safetensors"), spoil=lambda path: path.unlink())

    assert record.state == "failed"
    assert record.error.type == "urn:eckart:problem:invalid-calibration:gone"


def test_cached_decompositions_are_reused_only_with_the_same_calibration(run, save, anisotropic):
    first, second = (
        save({"a.gram": x @ x.T}, f"{i}.safetensors")
        for i, x in enumerate((anisotropic(64), anisotropic(64)))
    )
    runs = [run(first, name="g"), run(first, name="h"), run(second, name="i")]
    assert [record.state for record, _ in runs] == ["succeeded"] * 3
    results = [layout.result(record.id, 1) for record, layout in runs]
    factors = [load_file(result / "model.safetensors") for result in results]
    errors = [
        json.loads((result / "report.json").read_text())["layers"][0]["weighted_error"] for result in results
    ]

    assert all(torch.equal(factors[0][name], factors[1][name]) for name in factors[0])
    assert errors[0] == errors[1]
    assert not torch.equal(factors[0]["a.0.weight"], factors[2]["a.0.weight"])
    assert all(torch.equal(factors[0][name], factors[2][name]) for name in factors[0] if name[0] != "a")


@pytest.mark.parametrize("layout", ["factored", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_corrected_bias_makes_up_for_the_mean_error_of_what_is_stored(
    save, compress, gaussian, layout, dtype
):
    tensors = {"a.weight": gaussian(48, 64).to(dtype), "a.bias": gaussian(48).to(dtype)}
    x = gaussian(64, 500).double() + 3
    statistics = {"a.gram": x @ x.T, "a.mean": x.mean(1), "a.count": torch.tensor([500.0])}
    result = compress(save(tensors), calibration=save(statistics, "s.safetensors"), layout=layout, rank=6)
    stored = result.tensors()
    name = "a.bias" if layout == "dense" else "a.1.bias"
    dense = stored["a.weight"].double() if layout == "dense" else product(stored, "a")

    error = (tensors["a.weight"].double() - dense) @ x + (tensors["a.bias"] - stored[name]).double()[:, None]
    assert stored[name].dtype == dtype
    assert result.report.layers[0].bias_corrected
    size = float(((tensors["a.weight"].double() - dense) @ x).mean(1).abs().max())
    assert float(error.mean(1).abs().max()) < (1e-5 if dtype == torch.float32 else 1e-2) * (1 + size)


@pytest.mark.parametrize(("tokens", "warns"), [(63, True), (64, False)])
def test_fewer_tokens_than_inputs_are_a_warning(save, compress, gaussian, tokens, warns):
    x = gaussian(64, tokens).double()
    statistics = {"a.gram": x @ x.T, "a.count": torch.tensor([float(tokens)])}
    source = save({"a.weight": gaussian(48, 64)})

    warnings = compress(source, calibration=save(statistics, "s.safetensors"), rank=6).report.warnings

    assert [f"fewer tokens than inputs ({tokens} for 64) at a;" in line for line in warnings] == [
        True
    ] * warns


def test_a_bias_stays_where_the_spec_says_so_or_the_weight_stays_dense(save, compress, gaussian):
    tensors = {"a.weight": gaussian(48, 64), "a.bias": gaussian(48)}
    x = gaussian(64, 500).double() + 3
    statistics = {"a.gram": x @ x.T, "a.mean": x.mean(1), "a.count": torch.tensor([500.0])}
    source, calibration = save(tensors), save(statistics, "s.safetensors")

    kept = compress(source, calibration=calibration, rank=6, bias="keep")
    dense = compress(source, calibration=calibration, rank=40)

    assert torch.equal(kept.tensors()["a.1.bias"], tensors["a.bias"])
    assert torch.equal(dense.tensors()["a.bias"], tensors["a.bias"])
    assert not kept.report.layers[0].bias_corrected
    assert not dense.report.layers[0].bias_corrected


def test_a_corrected_bias_may_lie_in_another_shard_than_its_weight(tmp_path, compress, gaussian):
    weight, bias, x = gaussian(48, 64), gaussian(48), gaussian(64, 500).double() + 3
    save_file({"a.weight": weight}, tmp_path / "m-1.safetensors")
    save_file({"a.bias": bias}, tmp_path / "m-2.safetensors")
    files = {"a.weight": "m-1.safetensors", "a.bias": "m-2.safetensors"}
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    statistics = {"a.gram": x @ x.T, "a.mean": x.mean(1), "a.count": torch.tensor([500.0])}
    save_file(statistics, tmp_path / "s.safetensors")

    result = compress(index, calibration=tmp_path / "s.safetensors", rank=6)
    module = nn.Sequential()
    module.a = nn.Linear(64, 48)
    load_compressed(module, result.directory)

    assert not torch.equal(module.a.bias, bias)
    wanted = weight.double() @ x.mean(1) + bias
    found = module.a.weight.double() @ x.mean(1) + module.a.bias
    assert torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("mean", torch.full((64,), torch.nan), "holds NaN"),
        ("mean", torch.full((64,), 9.0), "store the mean, and not the sum"),
        ("count", torch.tensor([0.0]), "number of tokens"),
        ("count", torch.tensor([-3.0]), "number of tokens"),
        ("grad_gram", -torch.eye(48), "not positive"),
        ("grad_gram", torch.full((48, 48), torch.inf), "holds NaN"),
    ],
)
def test_bad_statistics_fail_the_job_with_the_layer_and_the_remedy(model, save, compress, kind, value, words):
    statistics = {"a.gram": torch.eye(64), "a.count": torch.tensor([9.0]), f"a.{kind}": value}

    with pytest.raises(CalibrationError, match=words) as refusal:
        compress(model[0], calibration=save(statistics, "s.safetensors"), rank=6)

    assert '"a"' in refusal.value.detail


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("svd", "bfloat16"),
        ("pivot", "int8"),
        ("cx", "keep"),
        ("cur", "float16"),
        ("int4", "keep"),
        ("int8+svd", "int8"),
    ],
)
def test_the_predicted_loss_of_every_form_is_recomputed_from_the_file(
    tmp_path, save, compress, gaussian, method, dtype
):
    weight, bias, x, g = (
        gaussian(48, 64),
        gaussian(48),
        gaussian(64, 500).double() + 3,
        gaussian(48, 500).double(),
    )
    mean, count = x.mean(1), torch.tensor([500.0])
    statistics = {"a.gram": x @ x.T, "a.mean": mean, "a.count": count, "a.grad_gram": g @ g.T}
    result = compress(
        save({"a.weight": weight, "a.bias": bias}),
        calibration=save(statistics, "s.safetensors"),
        method=method,
        dtype=dtype,
        rank=6,
    )
    model = nn.Sequential()
    model.a = nn.Linear(64, 48)
    load_compressed(model, result.directory)

    error = weight.double() - model.a.weight.detach().double()
    centered = x @ x.T - 500 * torch.outer(mean, mean)
    loss = float(torch.trace(error.T @ (g @ g.T) @ error @ centered)) / 500
    (layer,) = result.report.layers
    assert layer.predicted_loss == pytest.approx(loss, rel=1e-3)
    assert result.report.totals.predicted_loss == layer.predicted_loss
    shift = (bias - model.a.bias.detach()).double() + error @ mean
    assert float(shift.abs().max()) < 1e-4
