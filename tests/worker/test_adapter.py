"""Difference jobs in worker/: from two checkpoints to an adapter or a dense sum, with its errors."""

import json

import pytest
import torch

from schemas.planning.references import BaseError, References
from schemas.spec import CompressionSpec
from tests.worker.test_layer_cache import Bench
from worker.local import compress_local

SHAPES = {"a": (96, 64), "b": (64, 96), "same": (48, 48)}


@pytest.fixture
def base(gaussian):
    """Return the tensors of a model."""
    tensors = {f"{name}.weight": gaussian(*shape) for name, shape in SHAPES.items()}
    return tensors | {"a.bias": gaussian(96), "embed.weight": gaussian(50, 64), "norm.weight": gaussian(64)}


@pytest.fixture
def tuned(base, gaussian):
    """Return the model after a fine-tune of a at rank 8, and of b at full rank."""
    change = {"a.weight": gaussian(96, 8) @ gaussian(8, 64) / 50, "b.weight": gaussian(64, 96) / 50}
    return {name: tensor + change.get(name, 0) for name, tensor in base.items()}


@pytest.fixture
def adapted(save, compress):
    """Run a difference job on tensors."""

    def run(tuned, base, **spec):
        files = save(tuned, "tuned.safetensors"), save(base, "base.safetensors")
        return compress(files[0], base=files[1], **{"layout": "adapter", "rank": 8} | spec)

    return run


def change_of(result, module):
    factors = result.tensors()
    name = f"base_model.model.{module}.lora_"
    return factors[f"{name}B.weight"].double() @ factors[f"{name}A.weight"].double()


def layers(result):
    return {layer.name: layer for layer in result.report.layers}


def error(exact, found):
    exact = exact.double()
    return float(torch.linalg.norm(exact - found.double()) / torch.linalg.norm(exact))


def best_error(matrix, rank):
    values = torch.linalg.svdvals(matrix.double())
    return float(torch.linalg.norm(values[rank:]) / torch.linalg.norm(values))


def test_an_adapter_holds_the_best_approximation_of_each_difference(adapted, tuned, base):
    result = adapted(tuned, base)

    assert sorted(path.name for path in result.directory.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "report.json",
    ]
    for name in ("a", "b"):
        difference = tuned[f"{name}.weight"].double() - base[f"{name}.weight"].double()
        found, layer = change_of(result, name), layers(result)[name]
        assert layer.relative_error == pytest.approx(error(difference, found), rel=1e-3, abs=1e-7)
        assert layer.relative_error == pytest.approx(best_error(difference, 8), rel=1e-3, abs=5e-6)
    assert layers(result)["a"].relative_error < 1e-5
    assert layers(result)["same"].reason == "unchanged"
    assert result.report.base[0].name == "base.safetensors"
    assert len(result.report.output.files) == 2


def test_the_total_error_is_that_of_all_selected_differences(adapted, tuned, base):
    result = adapted(tuned, base, overrides=[{"match": "b", "rank": {"ratio": 0.001}}])

    change = {name: tuned[f"{name}.weight"] - base[f"{name}.weight"] for name in ("a", "b")}
    norms = {name: float(change[name].double().square().sum()) for name in change}
    assert layers(result)["b"].reason == "rank_zero"
    assert result.report.totals.relative_error**2 == pytest.approx(norms["b"] / sum(norms.values()))
    assert result.report.totals.parameters_before == sum(t.numel() for t in tuned.values())
    assert result.report.totals.parameters_after == 8 * (96 + 64)


@pytest.mark.parametrize(
    "rank", [{"energy": 0.95}, {"error": 0.2}, {"error": 1e-9}, {"budget": 0.4}, {"ratio": 0.3}, 96]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_rule_gives_the_rank_that_the_spectrum_of_the_difference_has(adapted, tuned, base, rank, dtype):
    tuned, base = ({name: tensor.to(dtype) for name, tensor in t.items()} for t in (tuned, base))
    result = adapted(tuned, base, rank=rank, dtype="float32")

    difference = {name: tuned[f"{name}.weight"].double() - base[f"{name}.weight"].double() for name in "ab"}
    for name, exact in difference.items():
        layer = layers(result)[name]
        assert layer.relative_error == pytest.approx(best_error(exact, layer.rank), rel=1e-3, abs=1e-6)
        if rank == {"error": 0.2}:
            assert layer.relative_error <= 0.2 < best_error(exact, layer.rank - 1)
        if rank in ({"error": 1e-9}, 96):
            assert layer.rank == 64
    if rank == {"budget": 0.4}:
        assert result.report.totals.parameters_after <= 0.4 * (2 * 64 * 96 + 48 * 48)


@pytest.mark.parametrize("limit", [4_000, 20_000, 10**6])
def test_a_budget_in_bytes_counts_the_file_of_the_adapter(adapted, tuned, base, limit):
    result = adapted(tuned, base, rank={"budget_bytes": limit})

    size = (result.directory / "adapter_model.safetensors").stat().st_size
    assert size <= limit
    assert size > limit - 1200 or result.report.totals.relative_error < 1e-6


def test_a_budget_leaves_out_what_matters_least(adapted, tuned, base):
    result = adapted(
        tuned, base, rank={"budget": 0.08}, overrides=[{"match": "b", "weight": 1e-6}], objective="absolute"
    )

    assert (layers(result)["b"].rank, layers(result)["b"].reason) == (None, "kept_by_budget")
    assert layers(result)["a"].rank == 7
    assert result.report.totals.relative_error > layers(result)["a"].relative_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dense_layout_is_the_base_plus_the_difference_of_low_rank(adapted, tuned, base, dtype):
    tuned, base = ({name: tensor.to(dtype) for name, tensor in t.items()} for t in (tuned, base))
    result = adapted(tuned, base, layout="dense")

    written = result.tensors()
    assert {n: (t.shape, t.dtype) for n, t in written.items()} == {
        n: (t.shape, t.dtype) for n, t in tuned.items()
    }
    for name in ("same.weight", "a.bias", "embed.weight", "norm.weight"):
        assert torch.equal(written[name], tuned[name])
    for name in ("a", "b"):
        start = base[f"{name}.weight"].double()
        exact = tuned[f"{name}.weight"].double() - start
        found = written[f"{name}.weight"].double() - start
        assert layers(result)[name].relative_error == pytest.approx(error(exact, found), rel=1e-3, abs=1e-7)


def test_transposed_weights_give_factors_of_the_map(adapted, tuned, base):
    plain = adapted(tuned, base)
    for tensors in (tuned, base):
        tensors["a.weight"] = tensors["a.weight"].mT.contiguous()
    turned = adapted(tuned, base, transposed=["a"])

    assert torch.allclose(change_of(plain, "a"), change_of(turned, "a"), atol=1e-6)
    config = json.loads((turned.directory / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True


def test_a_calibration_applies_to_the_difference(adapted, save, tuned, base, gaussian):
    x = gaussian(96, 300) * torch.logspace(0, -3, 96)[:, None]
    grams = save({"b.gram": x @ x.T}, "grams.safetensors")
    layer = layers(adapted(tuned, base, calibration=grams))["b"]

    change = (tuned["b.weight"] - base["b.weight"]).double()
    assert layer.weighted_error == pytest.approx(best_error(change @ x.double(), 8), rel=1e-3)
    assert layer.relative_error > best_error(change, 8)


def test_shards_and_their_base_need_not_match(adapted, save, save_sharded, compress, tuned, base):
    names = list(tuned)
    source = save_sharded([{n: tuned[n] for n in names[:2]}, {n: tuned[n] for n in names[2:]}])
    sharded = compress(source, base=save(base, "base.safetensors"), layout="adapter", rank=8)
    whole = adapted(tuned, base)

    name = "adapter_model.safetensors"
    assert (sharded.directory / name).read_bytes() == (whole.directory / name).read_bytes()


def test_a_base_of_another_dtype_is_subtracted_as_it_is(adapted, tuned, base):
    half = {name: tensor.to(torch.bfloat16) for name, tensor in base.items()}
    result = adapted(tuned, half, rank=64)

    exact = tuned["a.weight"].double() - half["a.weight"].double()
    assert error(exact, change_of(result, "a")) < 1e-6
    assert result.tensors()["base_model.model.a.lora_A.weight"].dtype == torch.float32


def test_what_differs_outside_the_adapter_is_named_with_its_share(adapted, tuned, base):
    assert not [w for w in adapted(tuned, base).report.warnings if w.startswith("base:")]
    tuned["embed.weight"][3] += 0.5
    tuned["a.bias"] += 0.1
    (warning,) = [w for w in adapted(tuned, base).report.warnings if w.startswith("base:")]

    norms = {name: float((tuned[name] - base[name]).square().sum()) for name in tuned}
    total = sum(norms.values())
    for name in ("embed.weight", "a.bias"):
        assert f"{name} ({norms[name] / total:.2%})" in warning
    assert "2 tensors differ" in warning
    assert f"{(norms['embed.weight'] + norms['a.bias']) / total:.2%} of the squared norm" in warning
    assert "norm.weight" not in warning


def test_values_that_are_not_finite_are_left_out_and_told(adapted, tuned, base):
    tuned["b.weight"][0, 0] = torch.nan
    tuned["norm.weight"][0] = torch.inf
    base["embed.weight"][0, 0] = tuned["embed.weight"][0, 0] = -torch.inf
    result = adapted(tuned, base)

    assert layers(result)["b"].reason == "not_finite"
    assert result.report.totals.relative_error < 1e-5
    (warning,) = [w for w in result.report.warnings if w.startswith("base:")]
    assert "norm.weight (not a finite difference)" in warning
    assert "embed.weight" not in warning


def test_a_tied_head_and_integers_that_differ_are_named_too(adapted, tuned, base):
    extra = {"head.weight": base["embed.weight"], "positions": torch.arange(8)}
    base |= {name: tensor.clone() for name, tensor in extra.items()}
    tuned |= {name: tensor.clone() for name, tensor in extra.items()}
    for name in ("embed.weight", "head.weight"):
        tuned[name][5] += 1
    tuned["positions"] += 1
    result = adapted(tuned, base)

    assert layers(result)["head"].reason == "tied"
    (warning,) = [w for w in result.report.warnings if w.startswith("base:")]
    assert "head.weight (" in warning
    assert "positions (not a finite difference)" in warning
    factored = [layer for layer in result.report.layers if layer.rank]
    assert result.report.totals.layers_factored == len(factored) == 2


def test_a_folder_gives_an_adapter_with_its_companions_but_no_model_config(
    save, compress, tuned, base, tmp_path
):
    folder = tmp_path / "tuned"
    folder.mkdir()
    save(tuned, "tuned/model.safetensors")
    for name in ("config.json", "tokenizer.json", "README.md", "adapter_config.json"):
        (folder / name).write_text("{}")
    result = compress(folder, base=save(base, "base.safetensors"), layout="adapter", rank=8)

    assert sorted(path.name for path in result.directory.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "report.json",
        "tokenizer.json",
    ]
    assert json.loads((result.directory / "adapter_config.json").read_text())["r"] == 8
    assert "peft.PeftModel.from_pretrained" in result.report.how_to_load


def test_equal_checkpoints_make_no_adapter(adapted, save, tuned, tmp_path):
    source = save(tuned, "tuned.safetensors")
    with pytest.raises(BaseError, match="equal those of the base") as refusal:
        compress_local(
            source,
            tmp_path / "out",
            CompressionSpec(rank=8, layout="adapter"),
            references=References(base=source),
            device=torch.device("cpu"),
            observe=lambda _progress: None,
        )
    assert refusal.value.fault == "no-difference"


def test_a_local_adapter_needs_a_directory(save, tuned, base, tmp_path):
    with pytest.raises(ValueError, match="an adapter has two files"):
        compress_local(
            save(tuned),
            tmp_path / "out.safetensors",
            CompressionSpec(rank=8, layout="adapter"),
            references=References(base=save(base, "base.safetensors")),
            device=torch.device("cpu"),
            observe=lambda _progress: None,
        )


def test_cached_decompositions_are_those_of_the_pair(save, tuned, base, tmp_path):
    other = {name: tensor * 0.9 for name, tensor in base.items()}
    files = [save(tensors, f"{i}.safetensors") for i, tensors in enumerate((base, other))]
    (tmp_path / "data").mkdir()
    bench = Bench(tmp_path / "data", save(tuned))
    spec = {"rank": {"energy": 0.9}, "layout": "adapter"}
    first = [bench.run(spec, base=file) for file in files]
    again = [bench.run(spec, base=file) for file in files]

    for before, after in zip(first, again, strict=True):
        assert {x.decomposition for x in before.layers if x.rank} == {"computed"}
        assert [x.relative_error for x in before.layers] == [x.relative_error for x in after.layers]
        assert {x.decomposition for x in after.layers if x.rank} == {"cached"}
    assert first[0].layers[0].relative_error != first[1].layers[0].relative_error
