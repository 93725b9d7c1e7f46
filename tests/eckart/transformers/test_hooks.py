"""eckart/transformers: a folder is found and told, and without the import it is refused."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file

from eckart.transformers import EckartConfig
from schemas.planning.model_folder import MISSING_WEIGHTS
from tests.eckart.transformers.folders import (
    QUIET,
    low_rank_layers,
    make,
)

pytestmark = QUIET


def test_one_config_object_loads_a_folder_in_both_ways(shared):
    config = transformers.AutoConfig.from_pretrained(shared.compressed)
    dense = EckartConfig(dequantize=True)
    counts = [
        len(low_rank_layers(shared.kind.from_pretrained(shared.compressed, config=config, **options)))
        for options in ({}, {"quantization_config": dense}, {}, {"quantization_config": dense})
    ]
    assert counts[0] == counts[2] > 0
    assert counts[1] == counts[3] == 0


def test_another_quantization_config_is_refused_as_ever(shared):
    with pytest.raises(ValueError, match="quantized with EckartConfig but you are passing"):
        shared.load(quantization_config=transformers.GPTQConfig(bits=4))


def test_a_dense_folder_cannot_be_asked_for_the_method(shared):
    with pytest.raises(ValueError, match="pre-quantized"):
        shared.kind.from_pretrained(shared.dense, quantization_config=EckartConfig())


def test_a_repository_in_the_cache_of_the_hub_loads(shared, tmp_path, monkeypatch):
    commit = "0" * 40
    place = tmp_path / "models--someone--small"
    shutil.copytree(shared.compressed, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    model = shared.kind.from_pretrained("someone/small", **options)
    assert low_rank_layers(model)
    assert torch.equal(shared.computed(model), shared.computed(shared.load()))


def test_a_subfolder_and_a_variant_load(shared, tmp_path):
    parent = shared.compressed.parent
    model = shared.kind.from_pretrained(parent, subfolder=shared.compressed.name, variant="fp16")
    assert low_rank_layers(model)
    model.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "model.fp16.safetensors").is_file()
    again = shared.kind.from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(shared.computed(again), shared.computed(model))


def test_a_state_dict_loads_with_the_folders_config(shared):
    config = transformers.AutoConfig.from_pretrained(shared.compressed)
    state = load_file(shared.compressed / "eckart.safetensors")
    model = shared.kind.from_pretrained(None, config=config, state_dict=state)
    assert torch.equal(shared.computed(model), shared.computed(shared.load()))


WITHOUT_IMPORT = """
import json, sys
from os.path import basename, dirname
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
folders, dense, repository = json.loads(sys.argv[1])
plain = AutoConfig.from_pretrained(dense)
calls = {
    "auto": lambda path: AutoModelForCausalLM.from_pretrained(path),
    "base": lambda path: AutoModel.from_pretrained(path),
    "ignored sizes": lambda path: AutoModel.from_pretrained(path, ignore_mismatched_sizes=True),
    "variant": lambda path: AutoModel.from_pretrained(path, variant="fp16"),
    "pickle": lambda path: AutoModel.from_pretrained(path, use_safetensors=False),
    "safetensors": lambda path: AutoModel.from_pretrained(path, use_safetensors=True),
    "config": lambda path: AutoModel.from_pretrained(path, config=AutoConfig.from_pretrained(path)),
    "subfolder": lambda path: AutoModel.from_pretrained(dirname(path), subfolder=basename(path)),
    "device map": lambda path: AutoModel.from_pretrained(path, device_map="auto"),
    "bfloat16": lambda path: AutoModel.from_pretrained(path, torch_dtype="bfloat16"),
}
results = {}
def attempt(label, call):
    try:
        call()
        results[label] = "loaded"
    except Exception as error:
        results[label] = str(error)
for folder in folders:
    for name, call in calls.items():
        attempt(f"{name} {folder}", lambda: call(folder))
cached = {"cache_dir": repository, "local_files_only": True}
attempt("cache", lambda: AutoModel.from_pretrained("someone/small", **cached))
attempt("plain", lambda: AutoModel.from_pretrained(folders[0], config=plain))
assert not any(name.startswith("eckart") for name in sys.modules)
print(json.dumps(results))
"""


def test_without_the_import_transformers_fails_and_says_what_is_missing(shared, tmp_path):
    shared.load().save_pretrained(tmp_path / "saved")
    sharded = make(tmp_path / "sharded", "llama", max_shard_size="20KB")
    cached = tmp_path / "models--someone--small"
    shutil.copytree(shared.compressed, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    folders = [str(path) for path in (shared.compressed, sharded.compressed, tmp_path / "saved")]
    arguments = json.dumps([folders, str(shared.dense), str(tmp_path)])
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_IMPORT, arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    results = json.loads(found.stdout.splitlines()[-1])
    assert len(results) == 32
    assert "loaded" not in results.values()
    # These two find no weights at all, so that they do not name the file.
    unnamed = {name for name, text in results.items() if MISSING_WEIGHTS not in text}
    assert unnamed <= {"plain", "cache"}
