"""eckart/transformers: what is saved of a model with factored layers loads again."""

import json

import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from eckart.torch import expand
from eckart.transformers import EckartConfig
from schemas.format.companion import CONFIG_NAME
from schemas.format.header_stream import read_header
from schemas.format.metadata import factored_layers
from schemas.planning.model_folder import MISSING_WEIGHTS
from tests.compression import compress
from tests.eckart.transformers.folders import (
    QUIET,
    factors_in,
    ids,
    llama,
    low_rank_layers,
    make,
)

pytestmark = QUIET


@pytest.mark.parametrize("dense", [False, True])
def test_what_save_pretrained_writes_loads_again(folder, dense, tmp_path):
    options = {"quantization_config": EckartConfig(dequantize=True)} if dense else {}
    model = folder.load(**options)
    model.save_pretrained(tmp_path)
    again = folder.kind.from_pretrained(tmp_path)
    assert low_rank_layers(again).keys() == low_rank_layers(model).keys()
    assert torch.equal(folder.computed(again), folder.computed(model))
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert config.get("transformers_weights") == (None if dense else MISSING_WEIGHTS)


@pytest.mark.parametrize("size", ["1GB", "20kB"])
def test_the_files_of_save_pretrained_list_their_factored_layers_themselves(shared, size, tmp_path):
    shared.load(dtype=torch.bfloat16).save_pretrained(tmp_path / "again", max_shard_size=size)
    found = {}
    for path in sorted((tmp_path / "again").glob("*.safetensors")):
        header = read_header(path)
        layers = factored_layers(header.metadata)
        names = {tensor.name for tensor in header.tensors}
        assert layers.keys() == {
            name for name in factors_in(shared.compressed) if f"{name}.0.weight" in names
        }
        found |= layers
    listed = factors_in(tmp_path / "again")
    assert found.keys() == listed.keys() == factors_in(shared.compressed).keys()
    for name, layer in found.items():
        assert (layer.method, layer.rank, list(layer.shape)) == tuple(listed[name].values())
        assert layer.dtype == "BF16"


def test_what_save_pretrained_writes_is_compressed_as_the_folder_that_was_loaded(tmp_path):
    part = make(tmp_path / "part", "llama", include=["*.self_attn.*"])
    part.load().save_pretrained(tmp_path / "again")
    for name, folder in (("original", part.compressed), ("saved", tmp_path / "again")):
        compress(folder, tmp_path / name, rank=2)
    (file,) = (tmp_path / "again").glob("*.safetensors")
    compress(file, tmp_path / "alone.safetensors", rank=2)

    one, two, alone = (
        load_file(path)
        for path in (
            tmp_path / "original" / "eckart.safetensors",
            tmp_path / "saved" / "eckart.safetensors",
            tmp_path / "alone.safetensors",
        )
    )
    assert one.keys() == two.keys() == alone.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert all(torch.equal(value, alone[name]) for name, value in one.items())
    assert factors_in(tmp_path / "saved").keys() == factors_in(tmp_path / "original").keys()
    models = [part.kind.from_pretrained(tmp_path / name) for name in ("original", "saved")]
    assert torch.equal(*map(part.computed, models))


def test_what_save_pretrained_writes_is_expanded(shared, tmp_path):
    shared.load().save_pretrained(tmp_path / "again")
    (file,) = (tmp_path / "again").glob("*.safetensors")
    expand(file, tmp_path / "alone.safetensors")
    save_file(load_file(file), file, {"format": "pt"})
    expand(tmp_path / "again", tmp_path / "dense")

    dense, alone = (load_file(tmp_path / name) for name in ("dense/model.safetensors", "alone.safetensors"))
    assert dense.keys() == load_file(shared.product / "model.safetensors").keys()
    assert all(torch.equal(value, alone[name]) for name, value in dense.items())
    model = shared.kind.from_pretrained(tmp_path / "dense")
    assert not low_rank_layers(model)
    torch.testing.assert_close(shared.computed(model), shared.expected, rtol=0, atol=1e-5)


def test_other_files_get_no_entry_even_after_a_save_that_failed(shared, tmp_path):
    model = shared.load()
    with pytest.raises(SafetensorError, match="No such file"):
        model.save_pretrained(tmp_path / "a", variant="/no/such/")
    path = tmp_path / "x.safetensors"
    for metadata in (None, {"format": "pt"}):
        transformers.modeling_utils.safe_save_file(dict(model.state_dict()), path, metadata)
        assert read_header(path).metadata == (metadata or {})


def test_a_fine_tuned_model_loads_with_what_it_learnt(shared, tmp_path):
    model = shared.load()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids(), labels=ids()).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    again = shared.kind.from_pretrained(tmp_path)
    assert torch.equal(shared.computed(again), shared.computed(model))
    assert not torch.equal(shared.computed(again), shared.expected)


def test_a_trainer_goes_on_from_what_it_saved(shared, tmp_path):
    pytest.importorskip("accelerate")
    data = [{"input_ids": torch.arange(1, 7), "labels": torch.arange(1, 7)}] * 2
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_steps": 1}
    for steps, resume in ((1, None), (2, str(tmp_path / "checkpoint-1"))):
        arguments = transformers.TrainingArguments(str(tmp_path), max_steps=steps, **options)
        model = shared.load()
        transformers.Trainer(model, arguments, train_dataset=data).train(resume_from_checkpoint=resume)
    again = shared.kind.from_pretrained(tmp_path / "checkpoint-2")
    assert low_rank_layers(again)
    assert torch.equal(shared.computed(again), shared.computed(model.eval()))


def test_a_config_that_is_saved_alone_asks_for_the_missing_file_too(shared, tmp_path):
    transformers.AutoConfig.from_pretrained(shared.compressed).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert saved["transformers_weights"] == MISSING_WEIGHTS
    assert saved["quantization_config"]["layers"] == factors_in(shared.compressed)


def test_other_models_load_and_save_as_ever(tmp_path):
    torch.manual_seed(1)
    model, run = llama()
    model.eval().save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert config.keys().isdisjoint({"transformers_weights", "quantization_config"})
    assert torch.equal(run(type(model).from_pretrained(tmp_path)), run(model))
