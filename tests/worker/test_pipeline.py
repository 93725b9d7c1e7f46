"""worker/pipeline.py and worker/local.py: from files to files, recomputed with the reference library."""

import hashlib
import json
import shutil
from contextlib import suppress
from itertools import combinations, pairwise
from math import prod, sqrt

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from eckart.torch import load_compressed
from schemas.checkpoint import FileInfo
from schemas.format.files import open_checkpoint
from schemas.format.header_stream import read_header
from schemas.format.tensor import TensorInfo
from schemas.planning.documents import plan_document
from schemas.planning.planner import make_plan
from schemas.report import Report
from schemas.spec import CompressionSpec
from worker.checkpoint.spool import LayerSpool
from worker.local import compress_local
from worker.pipeline import CompressionRequest
from worker.pipeline import compress as run_pipeline

LINEAR = {"weight": (48, 32), "bias": (48,)}


def product(tensors, name, count):
    """Multiply a layer's factors to the dense weight, in float64."""
    dense = tensors[f"{name}.0.weight"].double()
    for position in range(1, count):
        dense = tensors[f"{name}.{position}.weight"].double() @ dense
    return dense


def relative_error(weight, approximation):
    weight = weight.double()
    return float(torch.linalg.norm(weight - approximation) / torch.linalg.norm(weight))


def raw_bytes(tensor):
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


METHODS = [
    ({"method": "svd"}, 2),
    ({"method": "cx"}, 2),
    ({"method": "cur"}, 3),
    ({"method": "cur", "cur": {"storage": "two"}}, 2),
]


@pytest.mark.parametrize(("spec", "count"), METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_report_agrees_with_figures_recomputed_from_the_two_files(
    save, gaussian, compress, spec, count, dtype
):
    weights = {"a.weight": gaussian(40, 60, dtype=dtype), "b.weight": gaussian(70, 30, dtype=dtype)}
    result = compress(save(weights), **spec)
    tensors, squared_error, squared_norm = result.tensors(), 0.0, 0.0
    reached, least = [], []

    for layer in result.report.layers:
        weight = weights[layer.tensor].double()
        dense = product(tensors, layer.name, count)
        spectrum = torch.linalg.svdvals(weight)
        assert layer.relative_error == pytest.approx(relative_error(weight, dense), rel=1e-5)
        optimum = float(spectrum[layer.rank :].norm() / spectrum.norm())
        assert layer.optimal_error == pytest.approx(optimum, rel=1e-5)
        assert layer.singular_values == pytest.approx(spectrum.tolist(), rel=1e-4)
        assert layer.parameters_after == sum(
            tensors[f"{layer.name}.{i}.weight"].numel() for i in range(count)
        )
        squared_error += float((weight - dense).square().sum())
        squared_norm += float(weight.square().sum())
        reached.append(relative_error(weight, dense))
        least.append(optimum)
    totals = result.report.totals
    over = np.linalg.norm(reached) / np.linalg.norm(least)
    assert totals.error_over_optimal == pytest.approx(over, rel=1e-5)
    assert (over < 1.001) == (spec["method"] == "svd")
    assert totals.relative_error == pytest.approx(sqrt(squared_error / squared_norm), rel=1e-5)
    assert totals.parameters_after == sum(tensor.numel() for tensor in tensors.values())
    assert totals.bytes_after == sum(tensor.nbytes for tensor in tensors.values())
    assert totals.parameter_savings == pytest.approx(1 - totals.parameters_after / totals.parameters_before)


@pytest.mark.parametrize("rank", [3, 40])
def test_there_is_no_error_over_an_optimum_of_zero(save, compress, rank):
    report = compress(save({"a.weight": torch.zeros(40, 60)}), method="cx", rank=rank).report

    assert report.totals.layers_factored == (rank == 3)
    assert report.totals.error_over_optimal is None


@pytest.mark.parametrize(("spec", "count"), METHODS)
def test_a_compressed_layer_is_the_state_of_a_stock_sequential(save, compress, spec, count):
    linear = torch.nn.Linear(48, 64)
    result = compress(save({f"up.{k}": v.data for k, v in linear.named_parameters()}), **spec)
    rank = result.report.layers[0].rank

    sizes = [48, *[rank] * (count - 1), 64]
    layers = [torch.nn.Linear(a, b, bias=i == count - 1) for i, (a, b) in enumerate(pairwise(sizes))]
    stock = torch.nn.ModuleDict({"up": torch.nn.Sequential(*layers)})
    stock.load_state_dict(result.tensors(), strict=True)

    x = torch.randn(5, 48)
    expected = x.double() @ product(result.tensors(), "up", count).T + linear.bias.double()
    torch.testing.assert_close(stock["up"](x).double(), expected, atol=1e-4, rtol=1e-4)


def test_other_tensors_are_copied_byte_for_byte_in_order_with_their_metadata(save, gaussian, compress):
    source = save(
        {
            "embed_tokens.weight": gaussian(100, 32, dtype=torch.bfloat16),
            "layer.weight": gaussian(32, 32, dtype=torch.bfloat16),
            "layer.bias": gaussian(32, dtype=torch.bfloat16),
            "norm.weight": gaussian(32, dtype=torch.bfloat16),
            "position_ids": torch.arange(7),
            "mask": torch.tensor([[True, False]]),
            "scalar": torch.tensor(3.5),
            "empty": torch.empty(0, 4),
            "f8": gaussian(4, 4).to(torch.float8_e4m3fn),
        },
        metadata={"format": "pt", "note": "kept é"},
    )
    result = compress(source)
    before, after = load_file(source), result.tensors()

    for name in before.keys() & after.keys():
        assert before[name].dtype == after[name].dtype
        assert raw_bytes(before[name]) == raw_bytes(after[name])
    assert before.keys() - after.keys() == {"layer.weight", "layer.bias"}
    assert after["layer.1.bias"].equal(before["layer.bias"])
    renamed = {"layer.1.weight": None, "layer.0.weight": "layer.weight", "layer.1.bias": "layer.bias"}
    written = read_header(result.directory / "model.safetensors")
    order = [renamed.get(tensor.name, tensor.name) for tensor in written.tensors]
    assert [name for name in order if name] == [tensor.name for tensor in read_header(source).tensors]
    assert written.metadata["note"] == "kept é"
    document = json.loads(written.metadata["eckart"])
    report = result.report.layers[0]
    assert document["version"] == 1
    assert document["layers"] == {
        "layer": {
            "method": "svd",
            "rank": report.rank,
            "shape": [32, 32],
            "dtype": "BF16",
            "relative_error": report.relative_error,
        }
    }


def test_a_sharded_llama_keeps_its_shards_and_gets_a_true_index(save_sharded, gaussian, compress):
    bf16 = torch.bfloat16

    def block(number):
        prefix = f"model.layers.{number}."
        shapes = {
            "self_attn.q_proj": (64, 64),
            "self_attn.k_proj": (16, 64),
            "mlp.gate_proj": (172, 64),
            "mlp.down_proj": (64, 172),
        }
        weights = {prefix + name + ".weight": gaussian(*shape, dtype=bf16) for name, shape in shapes.items()}
        return weights | {prefix + "input_layernorm.weight": gaussian(64, dtype=bf16)}

    shards = [
        {"model.embed_tokens.weight": gaussian(256, 64, dtype=bf16)} | block(0),
        block(1) | {"lm_head.weight": gaussian(256, 64, dtype=bf16)},
    ]
    directory = save_sharded(shards, total_parameters=0)
    result = compress(directory, rank={"ratio": 0.3})

    names = sorted(path.name for path in directory.iterdir())
    assert sorted(path.name for path in result.directory.iterdir()) == sorted([*names, "report.json"])
    index = json.loads((result.directory / "model.safetensors.index.json").read_text())
    real = {}
    for path in result.directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            real |= dict.fromkeys(file.keys(), path.name)
            layers = json.loads(file.metadata()["eckart"])["layers"]
            assert {f"{name}.0.weight" for name in layers} <= set(file.keys())
    assert index["weight_map"] == real
    tensors = result.tensors()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert all(tensor.dtype == bf16 for tensor in tensors.values())
    assert result.report.totals.layers_factored == 9
    assert tensors["model.embed_tokens.weight"].equal(shards[0]["model.embed_tokens.weight"])
    sizes = {file.name: file.size_bytes for file in result.report.output.files}
    assert sizes == {name: (result.directory / name).stat().st_size for name in names}


def test_an_index_with_a_wrong_total_is_written_anew_with_the_right_one(save_sharded, gaussian, compress):
    directory = save_sharded(
        [{"a.weight": gaussian(32, 32)}, {"b.weight": gaussian(32, 32)}], total_size=2, note="kept"
    )
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"format": "safetensors", **json.loads(path.read_text())}))

    result = compress(directory)

    index = json.loads((result.directory / path.name).read_text())
    assert index["metadata"] == {"total_size": result.report.totals.bytes_after, "note": "kept"}
    assert index["format"] == "safetensors"
    assert any("total_size" in warning for warning in result.report.warnings)


def test_a_variant_keeps_the_names_of_its_index_and_its_shards(save_sharded, gaussian, compress):
    directory = save_sharded([{"a.weight": gaussian(32, 32)}, {"b.weight": gaussian(32, 32)}])
    path = directory / "model.safetensors.index.json"
    path.rename(directory / "model.safetensors.index.fp16.json")

    result = compress(directory)

    names = {path.name for path in directory.iterdir()}
    assert {path.name for path in result.directory.iterdir()} == {*names, "report.json"}
    assert "model.safetensors.index.fp16.json" in names


def test_a_bias_in_another_shard_than_its_weight_is_renamed_in_its_shard(save_sharded, gaussian, compress):
    directory = save_sharded([{"a.weight": gaussian(32, 32)}, {"a.bias": gaussian(32)}])
    result = compress(directory)

    second = load_file(result.directory / "model-00002-of-00002.safetensors")
    assert list(second) == ["a.1.bias"]


def test_gpt2_names_are_factored_and_its_embeddings_are_not(save, gaussian, compress):
    names = ["wte", "wpe", "h.0.ln_1", "h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj"]
    tensors = {f"transformer.{name}.weight": gaussian(48, 96) for name in names}
    tensors["transformer.h.0.ln_1.weight"] = gaussian(48)
    tensors["transformer.h.0.attn.bias"] = gaussian(1, 1, 8, 8)
    report = compress(save(tensors)).report

    assert [layer.name.split(".", 1)[1] for layer in report.layers] == sorted(names[3:])


VGG = {"classifier.0": (4096, 25088), "classifier.3": (4096, 4096), "classifier.6": (10, 4096)}


@pytest.mark.parametrize(
    ("spec", "ranks", "parameters"),
    [
        # The study behind these figures also factors the last layer, at 100 parameters more than dense.
        ({"method": "svd"}, (16, 10), 598_126 - 100),
        ({"method": "svd"}, (24, 14), 864_366 - 100),
        ({"method": "cx"}, (121, 71), 4_162_058),
        ({"method": "cx"}, (293, 171), 10_000_906),
        ({"method": "cur", "cur": {"storage": "two"}}, (121, 71), 4_162_058),
        ({"method": "cur", "cur": {"storage": "two"}}, (293, 171), 10_000_906),
    ],
)
def test_a_vgg11_classifier_has_the_parameter_counts_of_the_formulas(spec, ranks, parameters):
    tensors, start = [], 0
    for name, shape in VGG.items():
        for suffix, sizes in (("weight", shape), ("bias", shape[:1])):
            end = start + 4 * prod(sizes)
            tensors.append(TensorInfo(f"{name}.{suffix}", "F32", sizes, start, end))
            start = end
    overrides = [{"match": name, "rank": rank} for name, rank in zip(VGG, (*ranks, 10), strict=True)]
    document = CompressionSpec.model_validate(spec | {"rank": 1, "overrides": overrides})
    totals = plan_document("vgg", make_plan(tensors, document)).totals

    assert totals.parameters_before == 119_586_826
    assert totals.parameters_after == parameters


def test_dense_layout_keeps_names_and_shapes_and_stores_the_product(save, gaussian, compress):
    tensors = {"a.weight": gaussian(40, 50), "a.bias": gaussian(40), "b.0.weight": gaussian(3, 3)}
    dense = compress(save(tensors), layout="dense")
    factored = compress(save(tensors))

    assert {name: t.shape for name, t in dense.tensors().items()} == {n: t.shape for n, t in tensors.items()}
    expected = product(factored.tensors(), "a", 2)
    torch.testing.assert_close(dense.tensors()["a.weight"].double(), expected, atol=1e-5, rtol=1e-5)
    layer = dense.report.layers[0]
    assert layer.relative_error == pytest.approx(relative_error(tensors["a.weight"], expected), rel=1e-4)
    assert dense.report.totals.parameters_after == dense.report.totals.parameters_before


@pytest.mark.parametrize(("name", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_factors_in_another_dtype_load_with_the_reference_library(save, gaussian, compress, name, dtype):
    tensors = {"a.weight": gaussian(33, 35), "a.bias": gaussian(33), "tail": gaussian(5)}
    result = compress(save(tensors), rank=1, dtype=name)

    assert result.tensors()["a.0.weight"].dtype == dtype
    assert result.tensors()["tail"].equal(tensors["tail"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_kept_as_it_is_with_its_reason(save, gaussian, compress, bad):
    weight = gaussian(32, 32)
    weight[3, 4] = bad
    result = compress(save({"a.weight": weight, "b.weight": gaussian(32, 32)}))

    assert [layer.reason for layer in result.report.layers] == ["not_finite", None]
    kept = result.tensors()["a.weight"]
    assert kept.view(torch.int32).equal(weight.view(torch.int32))
    text = (result.directory / "report.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
    (warning,) = result.report.warnings
    assert warning.startswith("NaN or infinity in 1 tensor, kept as in the input: ")
    assert warning.endswith(": a.weight")
    assert "Infinity" not in text
    assert Report.model_validate_json(text) == result.report


@pytest.mark.parametrize("scale", [1e-30, 1e30, 0.0])
def test_extreme_scales_give_finite_reports(save, gaussian, compress, scale):
    result = compress(save({"a.weight": gaussian(32, 32) * scale}))

    assert np.isfinite(result.report.totals.relative_error)
    assert result.report.layers[0].outcome == "factored"


def test_the_same_input_and_spec_give_the_same_bytes(save, gaussian, compress):
    source = save({f"l{i}.weight": gaussian(64, 48) for i in range(3)})

    for spec in ({}, {"method": "cur", "selector": "leverage"}, {"method": "cx", "selector": "linear_time"}):
        first, second = compress(source, **spec), compress(source, **spec)
        assert first.report.output.files == second.report.output.files


def test_an_interrupted_run_resumes_and_ends_with_the_same_bytes(save, gaussian, tmp_path, compress):
    source = save({f"l{i}.weight": gaussian(64, 48) for i in range(6)})
    calm = compress(source)
    seen = []

    def pull_the_plug(progress):
        seen.append(progress.layer)
        if progress.layers_done >= 3:
            raise KeyboardInterrupt

    spec = CompressionSpec.model_validate({"rank": {"ratio": 0.5}})
    target, cpu = tmp_path / "broken", torch.device("cpu")
    with pytest.raises(KeyboardInterrupt):
        compress_local(source, target, spec, device=cpu, observe=pull_the_plug)
    assert not target.exists()
    (spool_dir,) = (path for path in tmp_path.glob("broken.work/*") if path.name != "decompositions")
    with LayerSpool(spool_dir) as spool:
        finished = {f"l{number}" for number in range(6) if spool.get(number)}
    assert len(finished) >= 3
    # The refused layer did not start, and layers that had started were finished; two at a time, in any order.
    assert set(seen[:-1]) == finished

    rest = []
    report = compress_local(source, target, spec, device=cpu, observe=lambda p: rest.append(p.layer))

    assert {layer for layer in rest if layer} == {f"l{i}" for i in range(6)} - finished
    assert report.output.files == calm.report.output.files
    assert sorted(path.name for path in tmp_path.glob("broken*")) == ["broken"]


def test_a_file_that_is_compressed_again_lists_the_factored_layers_of_both_passes(save, gaussian, compress):
    names = ["attn", "mlp", "attn2"]
    tensors = {f"{name}.{leaf}": gaussian(*shape) for name in names for leaf, shape in LINEAR.items()}
    first = compress(save(tensors), include=["attn"])
    second = compress(first.directory, include=["*"], method="cx")

    assert [layer.name for layer in second.report.layers] == ["attn2", "mlp"]
    with safe_open(second.directory / "model.safetensors", "pt") as file:
        layers = json.loads(file.metadata()["eckart"])["layers"]
    assert {name: layer["method"] for name, layer in layers.items()} == {
        "attn": "svd",
        "attn2": "cx",
        "mlp": "cx",
    }
    model = torch.nn.ModuleDict({name: torch.nn.Linear(32, 48) for name in names})
    load_compressed(model, second.directory / "model.safetensors")
    assert all(len(model[name]) == 2 for name in names)
    assert second.tensors()["attn.0.weight"].equal(first.tensors()["attn.0.weight"])


CPU = torch.device("cpu")


def finished_layers(spool_dir):
    """Return the tensor of each finished layer of all work in a spool, by number."""
    found = []
    for folder in spool_dir.iterdir():
        with LayerSpool(folder) as spool:
            outcomes = {number: spool.get(number) for number in range(6)}
        found.append({n: json.loads(text)["report"]["tensor"] for n, text in outcomes.items() if text})
    return found


@pytest.fixture
def attempt(save, gaussian, tmp_path):
    """Compress three weights of one shape on one spool, as attempts of one job do."""
    source = save({f"{name}.weight": gaussian(32, 32) for name in "abc"})

    def run(number, observe=lambda _progress: None, **options):
        spec = CompressionSpec.model_validate({"rank": 4} | options)
        result = tmp_path / f"result-{number}"
        request = CompressionRequest(open_checkpoint(source), (), spec, tmp_path / "spool", result)
        run_pipeline(request, device=CPU, observe=observe)
        return load_file(result / source.name)

    return run


def test_finished_layers_of_another_numbering_are_not_taken(attempt, tmp_path):
    attempt(1, exclude=["a"])
    whole = attempt(2)
    assert sorted(map(len, finished_layers(tmp_path / "spool"))) == [2, 3]
    shutil.rmtree(tmp_path / "spool")
    alone = attempt(3)
    assert all(whole[name].equal(alone[name]) for name in alone)


@pytest.mark.parametrize(
    "options",
    [
        {"exclude": ["a"]},
        {"rank": 5},
        {"method": "cx"},
        {"dtype": "bfloat16"},
        {"layout": "dense"},
        {"dtype": "int8"},
    ],
)
def test_a_finished_layer_in_the_place_of_another_is_done_again(attempt, tmp_path, options):
    spool = tmp_path / "spool"
    expected = attempt(1)
    (own,) = spool.iterdir()
    own.rename(tmp_path / "own")
    attempt(2, **options)
    (other,) = spool.iterdir()
    other.rename(own)
    found = attempt(3)
    assert all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize("outcome", ["{", '{"of": "another release"}', "{}"])
def test_a_finished_layer_that_cannot_be_read_is_done_again(attempt, tmp_path, outcome):
    expected = attempt(1)
    (own,) = (tmp_path / "spool").iterdir()
    with LayerSpool(own) as spool:
        spool.put(0, outcome, ())
    found = attempt(2)
    assert all(found[name].equal(expected[name]) for name in expected)


def test_the_work_can_be_stopped_while_the_output_is_written(save, gaussian, tmp_path):
    source = save({"a.weight": gaussian(32, 32)} | {f"b{i}": gaussian(8) for i in range(5)})
    seen = []

    def stop_at_the_third_tensor(progress):
        seen.append(progress.layer)
        if seen.count(None) == 4:
            raise KeyboardInterrupt

    request = CompressionRequest(
        open_checkpoint(source), (), CompressionSpec(rank=4), tmp_path / "spool", tmp_path / "result"
    )
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(request, device=torch.device("cpu"), observe=stop_at_the_third_tensor)
    assert list((tmp_path / "result").iterdir()) == []


def test_progress_moves_by_the_cost_of_layers_and_ends_at_one(save, gaussian, compress):
    fractions = []
    weights = {"a.weight": gaussian(128, 128), "b.weight": gaussian(16, 16), "c.weight": gaussian(16, 16)}
    compress(save(weights), observe=lambda progress: fractions.append(progress.fraction))

    costs = {"a": 128**3, "b": 16**3, "c": 16**3}
    steps = {sum(done) / sum(costs.values()) for n in range(4) for done in combinations(costs.values(), n)}
    assert {round(fraction, 9) for fraction in fractions} <= {round(step, 9) for step in steps}
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)


def test_progress_does_not_go_back_in_the_next_attempt(save, gaussian, tmp_path):
    source = save({f"{name}.weight": gaussian(32, 32) for name in "abcd"})
    info = FileInfo(
        name=source.name,
        size_bytes=source.stat().st_size,
        sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
    )
    request = CompressionRequest(
        open_checkpoint(source), (info,), CompressionSpec(rank=4), tmp_path / "spool", tmp_path / "result"
    )
    seen = []

    def die_after(layers):
        def observe(step):
            seen.append(step.layers_done)
            if step.layer is not None and step.layers_done >= layers:
                raise KeyboardInterrupt

        return observe

    for layers in (1, 2, 99):
        with suppress(KeyboardInterrupt):
            run_pipeline(request, device=CPU, observe=die_after(layers))

    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 4)


def test_progress_goes_back_for_a_layer_that_is_damaged(attempt, tmp_path):
    attempt(1)
    (own,) = (tmp_path / "spool").iterdir()
    with LayerSpool(own) as spool:
        spool.put(0, "{", ())
    seen = []
    attempt(2, observe=lambda step: seen.append((step.layers_done, step.layer)))

    assert (2, "a") in seen
    assert seen[-1] == (3, None)


def test_an_existing_target_is_left_alone(save, gaussian, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="give a new name"):
        compress_local(
            save({"a.weight": gaussian(8, 8)}),
            tmp_path / "there",
            CompressionSpec(rank=1),
            device=torch.device("cpu"),
            observe=lambda _progress: None,
        )
