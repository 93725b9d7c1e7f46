"""worker/pairs.py: MLPs with fewer neurons, from folders of real models to ones that transformers loads."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from eckart import calibrate
from eckart.torch import load_compressed
from examples.embeddings.study import original, sentences, vectors
from examples.minilm import installed, token_ids
from schemas.problem import SpecError
from schemas.report import Report
from tests import compression

WORDS, WIDTH = 60, 32
SIZES = {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "bert": lambda: BertModel(BertConfig(intermediate_size=48, **SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(intermediate_size=80, **SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS,
            n_embd=WIDTH,
            n_layer=2,
            n_head=2,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=0,
        )
    ),
}
WIDTH_KEYS = {"bert": ("intermediate_size", 36), "llama": ("intermediate_size", 60), "gpt2": ("n_inner", 96)}
NEURONS = {"pairs": "neurons", "include": [], "rank": {"ratio": 0.75}}


@pytest.fixture
def folder(tmp_path):
    """Return a function that makes a model with its folder and its calibration."""

    def make(name):
        torch.manual_seed(3)
        model = MODELS[name]().eval()
        model.save_pretrained(tmp_path / name)
        batches = [{"input_ids": torch.randint(0, WORDS, (4, 16))} for _ in range(6)]
        return model, tmp_path / name, calibrate(model, batches, tmp_path / "grams.safetensors")

    return make


@pytest.mark.parametrize("name", MODELS)
def test_the_result_is_a_smaller_dense_model_that_stock_transformers_loads(folder, compress, name):
    model, source, grams = folder(name)
    result = compress(source, calibration=grams, **NEURONS)
    before, after = load_file(source / "model.safetensors"), result.tensors()

    key, width = WIDTH_KEYS[name]
    config = json.loads((result.directory / "config.json").read_text())
    assert config == json.loads((source / "config.json").read_text()) | {key: width}
    assert {path.name for path in result.directory.glob("*.safetensors")} == {"model.safetensors"}
    assert result.report.how_to_load is None
    loaded, info = type(model).from_pretrained(result.directory, output_loading_info=True)
    assert not any(info.values())
    ids = torch.randint(0, WORDS, (2, 16))
    with torch.inference_mode():
        expected, found = (each.eval()(input_ids=ids)[0] for each in (model, loaded))
    assert float((found - expected).norm() / expected.norm()) < 0.1

    totals = result.report.totals
    assert totals.parameters_after == sum(tensor.numel() for tensor in after.values())
    assert totals.bytes_after == sum(tensor.nbytes for tensor in after.values())
    changed = {layer.tensor for layer in result.report.layers}
    changed |= {layer.name + ".bias" for layer in result.report.layers}
    assert set(before) == set(after)
    for tensor in set(before) - changed:
        assert torch.equal(before[tensor], after[tensor])


@pytest.mark.parametrize("name", MODELS)
def test_the_report_of_each_member_agrees_with_the_files(folder, compress, name):
    _, source, grams = folder(name)
    result = compress(source, calibration=grams, **NEURONS)
    before, after, statistics = load_file(source / "model.safetensors"), result.tensors(), load_file(grams)
    layers = result.report.layers

    for layer in layers:
        old, new = (each[layer.tensor].double() for each in (before, after))
        assert (layer.outcome, layer.method, layer.reason) == ("factored", "neurons", None)
        assert (tuple(old.shape), tuple(new.shape)) == (layer.shape, layer.shape_after)
        assert (layer.parameters_before, layer.parameters_after) == (old.numel(), new.numel())
        old, new = (each.T if layer.transposed else each for each in (old, new))
        kept = list(layer.rows or layer.columns)
        assert len(kept) == layer.rank
        whole = torch.zeros_like(old)
        if layer.rows is not None:
            assert torch.equal(new, old[kept])
            whole[kept] = new
            if layer.name + ".bias" in before:
                assert torch.equal(after[layer.name + ".bias"], before[layer.name + ".bias"][kept])
        else:
            whole[:, kept] = new
            gram = statistics[layer.name + ".gram"].double()
            if layer.bias_corrected:
                mean, count = (statistics[f"{layer.name}.{kind}"].double() for kind in ("mean", "count"))
                shift = after[layer.name + ".bias"] - before[layer.name + ".bias"]
                torch.testing.assert_close(shift.double(), (old - whole) @ mean, atol=1e-6, rtol=1e-4)
                gram = gram - count * torch.outer(mean, mean)
            lost = torch.trace((old - whole) @ gram @ (old - whole).T) / torch.trace(old @ gram @ old.T)
            assert layer.weighted_error == pytest.approx(float(lost.sqrt()), rel=1e-3)
        error = float((old - whole).norm() / old.norm())
        assert layer.relative_error == pytest.approx(error, rel=1e-5)
    pairs = {layer.rows or layer.columns for layer in layers}
    assert len(pairs) == 2


def test_what_else_is_selected_follows_the_method_and_the_folder_says_both(folder, compress):
    model, source, grams = folder("bert")
    result = compress(source, calibration=grams, **NEURONS | {"include": ["*.attention.*"]})
    config = json.loads((result.directory / "config.json").read_text())

    assert {layer.method for layer in result.report.layers} == {"neurons", "svd"}
    assert config["intermediate_size"] == 36
    assert set(config["quantization_config"]["layers"]) == {
        layer.name for layer in result.report.layers if layer.method == "svd"
    }
    narrow = BertModel(BertConfig(**model.config.to_dict() | {"intermediate_size": 36}))
    load_compressed(narrow, result.directory)


def test_other_shares_in_other_blocks_are_a_warning_since_config_says_one_width(folder, compress):
    _, source, grams = folder("bert")
    names = {"up": "encoder.layer.{}.intermediate.dense", "down": "encoder.layer.{}.output.dense"}
    pairs = [
        {k: v.format(i) for k, v in names.items()} | {"share": share} for i, share in enumerate((0.5, 0.75))
    ]
    result = compress(source, calibration=grams, include=[], pairs=pairs)

    assert [layer.rank for layer in result.report.layers] == [24, 24, 36, 36]
    assert any("config.json does not say" in warning for warning in result.report.warnings)
    assert json.loads((result.directory / "config.json").read_text())["intermediate_size"] == 48


def test_biases_stay_where_the_spec_says_so(folder, compress):
    _, source, grams = folder("bert")
    result = compress(source, calibration=grams, bias="keep", **NEURONS)
    before, after = load_file(source / "model.safetensors"), result.tensors()

    name = "encoder.layer.1.output.dense.bias"
    assert torch.equal(before[name], after[name])
    assert not any(layer.bias_corrected for layer in result.report.layers)


def test_an_interrupted_job_goes_on_and_ends_with_the_same_bytes(folder, compress, tmp_path):
    _, source, grams = folder("bert")
    whole = compress(source, calibration=grams, **NEURONS)
    target, begun = tmp_path / "again", []

    def stop_at_the_second(progress):
        if progress.layer is not None:
            begun.append(progress.layer)
            if len(begun) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compression.compress(source, target, calibration=grams, observe=stop_at_the_second, **NEURONS)
    compression.compress(
        source, target, calibration=grams, observe=lambda p: begun.append(p.layer), **NEURONS
    )

    assert [name for name in begun if name] == [f"encoder.layer.{i}.output.dense" for i in (0, 1, 1)]
    name = "model.safetensors"
    assert (target / name).read_bytes() == (whole.directory / name).read_bytes()
    Report.model_validate_json((target / "report.json").read_text())


def test_an_mlp_that_is_not_finite_stays_whole_and_the_folder_warns(folder, compress):
    _, source, grams = folder("bert")
    tensors = load_file(source / "model.safetensors")
    tensors["encoder.layer.0.intermediate.dense.weight"][0, 0] = torch.nan
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    result = compress(source, calibration=grams, **NEURONS)

    assert [layer.reason for layer in result.report.layers] == ["not_finite", "not_finite", None, None]
    assert result.tensors()["encoder.layer.0.intermediate.dense.bias"].shape == (48,)
    assert any("they differ now" in warning for warning in result.report.warnings)


def test_a_bias_that_its_dtype_cannot_hold_keeps_the_mlp_whole(save, gaussian, compress):
    x = gaussian(300, 48).double() * 0.01 + 300
    tensors = {"a.fc1.weight": gaussian(48, 16), "a.fc2.weight": 200 * gaussian(16, 48).abs()}
    tensors["a.fc2.bias"] = torch.full((16,), 6e4)
    source = save({name: tensor.half() for name, tensor in tensors.items()})
    statistics = {"a.fc2.gram": x.T @ x, "a.fc2.mean": x.mean(0), "a.fc2.count": torch.tensor([300.0])}
    result = compress(source, calibration=save(statistics, "s.safetensors"), **NEURONS)

    assert [layer.reason for layer in result.report.layers] == ["out_of_range", "out_of_range"]


def test_a_member_with_the_bytes_of_another_tensor_is_refused(save, gaussian, compress, tmp_path):
    up, down = gaussian(48, 16), gaussian(16, 48)
    source = save({"a.fc1.weight": up, "a.fc2.weight": down, "embed_tokens.weight": up.clone()})
    grams = tmp_path / "grams.safetensors"
    save_file({"a.fc2.gram": torch.eye(48)}, grams)

    with pytest.raises(SpecError, match=r"a\.fc1.*Name the other MLPs") as caught:
        compress(source, calibration=grams, **NEURONS)
    assert caught.value.pointer == "/pairs"


def test_a_budget_in_bytes_counts_the_smaller_weights_exactly(folder, compress):
    _, source, grams = folder("bert")
    pairs = [{"up": "*.intermediate.dense", "down": "*.output.dense", "share": 0.5}]
    options = {"pairs": pairs, "include": ["*.attention.*"], "calibration": grams, "layout": "factored"}
    size = (source / "model.safetensors").stat().st_size
    result = compress(source, rank={"budget_bytes": int(0.85 * size)}, **options)
    files = sum(path.stat().st_size for path in result.directory.glob("*.safetensors"))

    assert 0.84 * size < files <= 0.85 * size


def test_minilm_with_0_7_of_its_neurons_keeps_the_sentence_vectors(tmp_path, compress):
    model, texts = original(), sentences("evaluation")
    batches = [token_ids(text) for text in sentences("calibration")]
    grams = calibrate(model, batches, tmp_path / "grams.safetensors", include=["*.output.dense"])
    result = compress(installed("model.safetensors"), calibration=grams, **NEURONS | {"rank": {"ratio": 0.7}})
    narrow = original()
    for block in narrow.encoder.layer:
        block.intermediate.dense = torch.nn.Linear(384, 1075)
        block.output.dense = torch.nn.Linear(1075, 384)
    narrow.load_state_dict(result.tensors())

    cosines = (vectors(model, texts) * vectors(narrow.eval(), texts)).sum(1)
    assert float(cosines.mean()) > 0.96
