"""A whole folder of diffusers, compressed by the command line: it loads, and its pictures are right."""

import json

import numpy as np
import pytest
import torch

from eckart.cli import main
from eckart.torch import LowRankLinear
from tests.pipelines import picture, save_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:::diffusers", "ignore:::torch", "ignore:::transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a pipeline, with what else such folders hold."""
    folder = save_pipeline(tmp_path_factory.mktemp("pipeline") / "pictures")
    (folder / "README.md").write_text("---\ntags:\n- art\n---\n")
    (folder / "unet" / "README.md").write_text("# The UNet\n")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"the same weights")
    (folder / "text_encoder" / "NOTICE").write_text("mine")
    (folder / "vae" / "flax_model.msgpack").write_bytes(b"more weights")
    return folder


def compressed(folder, into, *options):
    """Compress a folder by the command line."""
    assert main(["compress", str(folder), "--ratio", "0.5", "--out", str(into), *options]) == 0
    return into


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_copied(folder, into, *components):
    """Check that all is as it was but the named components, which hold what a job's result has."""
    before, after = files_of(folder), files_of(into)
    for component in components:
        assert f"{component}/report.json" in after
        assert after[f"{component}/config.json"] != before[f"{component}/config.json"]

    def others(files):
        return {name: text for name, text in files.items() if name.partition("/")[0] not in components}

    assert others(after) == others(before)
    assert [path.name for path in into.parent.iterdir() if path.name.startswith(".")] == []


def expanded(folder, into):
    """Return a folder of dense products, which diffusers loads by itself."""
    assert main(["expand", str(folder), str(into)]) == 0
    assert not list(into.glob("*/report.json"))
    assert (into / "model_index.json").read_bytes() == (folder / "model_index.json").read_bytes()
    return into


def check_picture(folder, dense, *, factored):
    """Check that a compressed pipeline, loaded as the page says, makes the picture of its dense products."""
    from diffusers import DiffusionPipeline

    from eckart.diffusers import load_components

    pipeline = DiffusionPipeline.from_pretrained(folder, **load_components(folder))

    for name in ("unet", "text_encoder"):
        module = getattr(pipeline, name)
        assert any(isinstance(layer, LowRankLinear) for layer in module.modules()) == (name in factored)
        assert not module.training
    expected = picture(DiffusionPipeline.from_pretrained(dense))
    np.testing.assert_allclose(picture(pipeline), expected, rtol=1e-4, atol=1e-5)


def test_a_local_run_gives_a_folder_that_loads_as_a_whole(folder, tmp_path, capfd):
    into = compressed(folder, tmp_path / "small", "--local")

    out, err = capfd.readouterr()
    rows = [line.split()[0] for line in out.splitlines()[4:8]]
    assert rows == ["text_encoder", "unet", "all", "total"]
    assert out.endswith(f"\n{into}\n")
    assert "left out, since only safetensors files are compressed: unet/diffusion_pytorch_model.bin" in err
    assert "copied as they are, since they are no safetensors files: vae/flax_model.msgpack" in err
    check_copied(folder, into, "unet", "text_encoder")
    assert (into / "text_encoder" / "NOTICE").read_text() == "mine"
    assert not list(into.glob("unet/*.bin"))
    assert (into / "unet" / "README.md").read_text().endswith("# The UNet\n")
    check_picture(into, expanded(into, tmp_path / "dense"), factored={"unet", "text_encoder"})
    check_half(into)


def check_half(folder):
    """Check that a pipeline can have another dtype, in all of its models."""
    from diffusers import DiffusionPipeline

    from eckart.diffusers import load_components

    factored = load_components(folder, dtype=torch.bfloat16)
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, **factored)

    for name in ("unet", "text_encoder", "vae"):
        assert {tensor.dtype for tensor in getattr(pipeline, name).parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_a_service_compresses_the_components_that_are_named(service, folder, tmp_path, capfd):
    options = ("--component", "unet", "--url", service.url, "--json")
    into = compressed(folder, tmp_path / "small", *options)

    out, err = capfd.readouterr()
    document = json.loads(out)
    report = json.loads((into / "unet" / "report.json").read_bytes())
    assert document["components"] == {"unet": report}
    assert document["totals"]["layers_factored"] == report["totals"]["layers_factored"] > 0
    assert "the checkpoint stays stored as unet-" in err
    check_copied(folder, into, "unet")
    check_picture(into, expanded(into, tmp_path / "dense"), factored={"unet"})


def test_a_dense_result_needs_nothing_to_load(folder, tmp_path):
    from diffusers import DiffusionPipeline

    into = compressed(folder, tmp_path / "small", "--local", "--layout", "dense", "--component", "unet")

    pipeline = DiffusionPipeline.from_pretrained(into)
    original = DiffusionPipeline.from_pretrained(folder)
    assert not np.allclose(picture(pipeline), picture(original), atol=1e-5)
