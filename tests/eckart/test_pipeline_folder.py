"""eckart/pipeline_folder.py and what asks for it: which components are compressed, and what is copied."""

from __future__ import annotations

import json
import os
import re
import signal
import threading

import pytest
import torch
from safetensors.torch import save_file

from eckart import Client, InputError, JobFailed
from eckart.cli import main
from eckart.pipeline_folder import check_spec, is_pipeline, open_pipeline

CLASSES = {
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "safety_checker": [None, None],
}
WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
RATIO = {"rank": {"ratio": 0.5}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make a pipeline's folder, as small as it can be."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    for name in (*CLASSES, ".cache"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    for name, file in WEIGHTS.items():
        save_file({f"{name}.weight": torch.ones(8, 8)}, folder / name / file)
    index = {"_class_name": "FluxPipeline", "_diffusers_version": "0.36", **CLASSES, "scale": 0.5}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def url(serve, service, layer):
    """Start a small service that compresses anything to the same."""
    respond, _ = service({"eckart.safetensors": b"smaller"}, layers=[layer("a", shape=(8, 8), rank=2)])
    return serve(respond)


def relative(folder, paths):
    return [str(path.relative_to(folder)) for path in paths]


@pytest.mark.parametrize(
    ("named", "components"),
    [
        (None, ("transformer", "text_encoder")),
        (["vae"], ("vae",)),
        (["text_encoder", "transformer"], ("transformer", "text_encoder")),
    ],
)
def test_all_but_the_autoencoder_is_compressed_unless_it_is_named(folder, named, components):
    pipeline = open_pipeline(folder, named)

    assert pipeline.components == components
    kept = [f"{name}/{file}" for name, file in WEIGHTS.items() if name not in components]
    assert [name for name in relative(folder, pipeline.copied) if name.endswith("s")] == sorted(kept)


@pytest.mark.parametrize(
    ("index", "named", "words"),
    [
        ("[1]", None, "is no index of a pipeline"),
        ("{", None, "is no index of a pipeline"),
        ('{"x": ["diffusers", "UNet2DModel"]}', None, r"no component that .* names has \.safetensors files"),
        ('{"../vae": ["diffusers", "UNet2DModel"]}', None, r"no component that .* names has"),
        ('{"vae": ["diffusers", "AutoencoderKL"]}', None, "name the components .* with --component: vae"),
        (None, ["unet"], r"has no component unet with .*; it has transformer, vae, text_encoder"),
        (None, ["tokenizer"], "has no component tokenizer with"),
    ],
)
def test_a_folder_without_such_components_is_refused(folder, index, named, words):
    if index is not None:
        (folder / "model_index.json").write_text(index)

    assert is_pipeline(folder)
    with pytest.raises(InputError, match=words):
        open_pipeline(folder, named)


def test_two_sets_of_weights_are_refused_where_they_are_compressed_and_copied_elsewhere(folder):
    for name in ("vae", "text_encoder"):
        save_file({"x.weight": torch.ones(2, 2)}, folder / name / "model.fp16.safetensors")

    with pytest.raises(InputError, match=r"model\.fp16\.safetensors, model\.safetensors.*--component"):
        assert open_pipeline(folder).checkpoints
    assert "vae/model.fp16.safetensors" in relative(folder, open_pipeline(folder, ["transformer"]).copied)


def test_each_weight_of_another_format_is_told(folder):
    for name in ("text_encoder/pytorch_model.bin", "vae/flax_model.msgpack", "flux.safetensors"):
        (folder / name).write_bytes(b"x")
    pipeline = open_pipeline(folder)

    assert relative(folder, pipeline.left_out) == ["text_encoder/pytorch_model.bin"]
    assert [warning.partition(", since")[0] for warning in pipeline.warnings] == [
        "left out",
        "copied as they are",
        "copied as they are",
    ]
    assert [warning.rpartition(": ")[2] for warning in pipeline.warnings] == [
        "text_encoder/pytorch_model.bin",
        "vae/flax_model.msgpack",
        "flux.safetensors",
    ]


def test_links_are_followed_but_not_in_circles(folder, tmp_path):
    (folder / "vae").rename(tmp_path / "shared")
    (folder / "vae").symlink_to(tmp_path / "shared")
    (folder / "tokenizer" / "up").symlink_to(folder)

    copied = relative(folder, open_pipeline(folder).copied)

    assert [name for name in copied if name.startswith("vae/")] == [
        "vae/config.json",
        f"vae/{WEIGHTS['vae']}",
    ]
    assert [name for name in copied if "/up/" in name] == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"rank": 4, "layout": "adapter"}, "an adapter is made of one model"),
        ({"rank": 4, "base": "other"}, "an adapter is made of one model"),
        ({"rank": 4, "calibration": "grams"}, "a calibration is of one model, not of 2 components"),
        ({"rank": {"budget_bytes": 1000}}, "budget_bytes is not shared out among 2 components"),
    ],
)
def test_what_cannot_hold_for_several_components_is_refused(folder, spec, words):
    with pytest.raises(InputError, match=words):
        check_spec(spec, open_pipeline(folder))
    if "adapter" not in words:
        assert check_spec(spec, open_pipeline(folder, ["vae"])) == ()


def test_a_budget_holds_for_each_component_and_a_note_says_so(folder):
    spec = {"rank": {"budget": 0.5}}

    (note,) = check_spec(spec, open_pipeline(folder))
    assert "for each of 2 components by itself" in note
    assert check_spec(spec, open_pipeline(folder, ["vae"])) == check_spec(RATIO, open_pipeline(folder)) == ()


def result(into):
    return sorted(relative(into, [path for path in into.rglob("*") if path.is_file()]))


def test_the_command_leaves_a_whole_folder(folder, url, tmp_path, capsys):
    assert main(["compress", "pictures", "--ratio", "0.5", "--url", url]) == 0

    out, err = capsys.readouterr()
    into = tmp_path / "pictures-compressed"
    assert result(into) == [
        "model_index.json",
        "safety_checker/config.json",
        "scheduler/config.json",
        *(f"text_encoder/{name}" for name in ("eckart.safetensors", "report.json")),
        "tokenizer/config.json",
        *(f"transformer/{name}" for name in ("eckart.safetensors", "report.json")),
        *(f"vae/{name}" for name in ("config.json", WEIGHTS["vae"])),
    ]
    assert (into / "model_index.json").read_bytes() == (folder / "model_index.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "pictures-compressed"]
    assert re.search(r"^transformer +1 +0 ", out, re.MULTILINE)
    assert re.search(r"^total +2 +0 ", out, re.MULTILINE)
    assert "copied: model_index.json, safety_checker, scheduler, tokenizer, vae" in out
    assert err.count("the checkpoint stays stored as") == 2


def test_a_failed_component_leaves_nothing(folder, serve, service, problem, tmp_path, capsys):
    respond, _ = service({"eckart.safetensors": b"smaller"})
    failing, _ = service({}, fail=problem(detail="a tensor holds NaN"))
    jobs = []

    def first_succeeds(exchange):
        if exchange.method == "POST" and exchange.path == "/v1/jobs":
            jobs.append(exchange.path)
        (respond if len(jobs) < 2 else failing)(exchange)

    url = serve(first_succeeds)

    assert main(["compress", "pictures", "--ratio", "0.5", "--url", url]) == 1
    assert "a tensor holds NaN" in capsys.readouterr().err
    assert len(jobs) == 2
    jobs.clear()
    with Client(url) as client, pytest.raises(JobFailed):
        client.compress_pipeline(folder, RATIO, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("compress pictures --rank 2 --out pictures/small", "lies in the folder to compress"),
        ("compress pictures --rank 2 --component unet", "has no component unet"),
        ("compress pictures/vae --rank 2 --component unet", "--component is for a folder with"),
        ("plan my-model --rank 2 --component unet", "--component is for a folder with"),
        ("plan pictures --budget-bytes 1000", "budget_bytes is not shared out"),
        ("compress pictures --base pictures --rank 2", "an adapter is made of one model"),
        ("report pictures", "each component of a pipeline has a report"),
    ],
)
def test_what_is_refused_ends_with_1_before_anything_is_asked(folder, tmp_path, capsys, line, said):
    assert main([*line.split(), "--url", "http://127.0.0.1:9"]) == 1
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_pipeline_without_factors_is_not_expanded(folder, tmp_path, capsys):
    assert main(["expand", "pictures", "out"]) == 1
    assert "pictures holds no component that is factored" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_plan_shows_all_components(folder, url, capsys):
    assert main(["plan", "pictures", "--ratio", "0.5", "--url", url]) == 0

    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith(("plan", "pipeline"))] == [
        "plan for transformer",
        "plan for text_encoder",
        "pipeline pictures",
    ]
    assert main(["plan", "pictures", "--ratio", "0.5", "--url", url, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["components"]) == ["transformer", "text_encoder"]
    copied_bytes = document["copied"]["bytes"]
    assert document["totals"]["bytes_before"] == document["totals"]["bytes_after"] == copied_bytes > 0


def test_an_interrupted_run_leaves_nothing(folder, serve, service, tmp_path, capsys):
    """The first component is there, in a hidden folder, when Ctrl-C comes while the second job is started."""
    respond, _ = service({"eckart.safetensors": b"smaller"})
    jobs, seen, ended = [], [], threading.Event()

    def interrupt(exchange):
        jobs.append(exchange.path)
        if jobs.count("/v1/jobs") < 2:
            respond(exchange)
            return
        seen.extend(relative(tmp_path, tmp_path.glob("*/*/report.json")))
        os.kill(os.getpid(), signal.SIGINT)
        ended.wait(60)

    status = main(["compress", "pictures", "--ratio", "0.5", "--url", serve(interrupt)])
    ended.set()

    assert status == 130
    assert seen == [f".pictures-compressed.{os.getpid()}.part/transformer/report.json"]
    assert "interrupted; a job that was accepted goes on" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
