"""eckart/companions.py: what of a model's folder is sent, what stays here, and what is copied here."""

import json
import os

import httpx
import pytest
import torch
from safetensors.torch import save_file

from eckart import Client, InputError
from eckart import companions as ours
from eckart.checkpoint import open_checkpoint
from eckart.cli import main
from eckart.companions import copy_subfolders
from schemas.format import companion, names

SENT = ["README.md", "chat_template.jinja", "config.json", "spiece.model", "vocab.txt"]
STAYS = ["LICENSE", "modeling.py", "my notes.txt", "pytorch_model.bin", "pytorch_model.bin.index.json"]


@pytest.fixture
def folder(tmp_path):
    """Make a model's folder with all kinds of files."""
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    save_file({"x.weight": torch.ones(4, 4)}, folder / "model.safetensors")
    for name in (*SENT, *STAYS, "report.json", ".gitattributes"):
        (folder / name).write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text('{"mode": "mean"}')
    return folder


def test_the_rules_are_those_of_the_service():
    given = (*SENT, *STAYS, "report.json", "Report.json", "a" * 130 + ".txt", "a.index.json", ".a.md", "é.md")
    assert [ours.is_companion(name) for name in given] == [names.is_companion(name) for name in given]
    for limit in ("MAX_COMPANION_BYTES", "MAX_COMPANIONS_BYTES", "MAX_CONFIG_BYTES"):
        assert getattr(ours, limit) == getattr(companion, limit)
    assert (ours.COMPANION_NAME, ours.ENDINGS) == (names.COMPANION_NAME, names.COMPANION_ENDINGS)


def test_a_folder_brings_its_companions_and_a_file_does_not(folder):
    found = open_checkpoint(folder)

    assert [path.name for path in found.paths] == [*SENT, "model.safetensors"]
    assert list(found.companions.left_out) == sorted([*STAYS, "report.json"])
    assert [path.name for path in open_checkpoint(folder / "model.safetensors").paths] == [
        "model.safetensors"
    ]


def test_files_of_the_hubs_cache_are_symlinks_and_are_sent(folder, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).rename(tmp_path / f"blob-{name}")
        (snapshot / name).symlink_to(tmp_path / f"blob-{name}")
    (snapshot / "gone.json").symlink_to(tmp_path / "nowhere")

    assert [path.name for path in open_checkpoint(snapshot).paths] == ["config.json", "model.safetensors"]


def test_a_file_over_its_limit_stays_here(folder):
    for name, limit_bytes in (
        ("vocab.txt", ours.MAX_COMPANION_BYTES),
        ("config.json", ours.MAX_CONFIG_BYTES),
    ):
        os.truncate(folder / name, limit_bytes)
        assert name in [path.name for path in open_checkpoint(folder).companions.paths]
        os.truncate(folder / name, limit_bytes + 1)
        assert name in open_checkpoint(folder).companions.left_out


def test_too_much_together_is_refused_before_anything_is_hashed_or_sent(folder):
    for number in range(5):
        (folder / f"{number}.txt").touch()
        os.truncate(folder / f"{number}.txt", ours.MAX_COMPANION_BYTES)  # sparse: it takes no space
    asked = []

    def answer(request):
        asked.append(request)
        return httpx.Response(500)

    with (
        Client("http://here", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(InputError, match="268435456"),
    ):
        client.upload(folder)
    assert asked == []


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ([], r"holds no \.safetensors file$"),
        (["unet"], r"holds no \.safetensors file, but its subfolder unet does; give such a folder"),
        (["vae", "unet"], r"but its subfolders unet, vae do; give such a folder"),
    ],
)
def test_a_pipelines_folder_names_its_subfolders_with_weights(tmp_path, inside, words):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    for name in inside:
        (tmp_path / name).mkdir()
        save_file({"x.weight": torch.ones(2, 2)}, tmp_path / name / "diffusion_pytorch_model.safetensors")

    with pytest.raises(InputError, match=words):
        open_checkpoint(tmp_path)


def copied(folder, into):
    return [str(path.relative_to(into)) for path in copy_subfolders(folder, into)]


def test_small_files_of_subfolders_are_copied_here(folder, tmp_path):
    into = tmp_path / "out"
    for name in ("1_Pooling/pytorch_model.bin", "1_Pooling/.hidden.json", ".cache/x.json", "onnx/x.onnx"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")

    assert copied(folder, into) == ["1_Pooling/config.json"]
    assert copied(folder, into) == ["1_Pooling/config.json"], "the same again changes nothing"
    assert (into / "1_Pooling" / "config.json").read_text() == '{"mode": "mean"}'
    assert sorted(path.name for path in into.rglob("*")) == ["1_Pooling", "config.json"]


def test_the_weights_of_a_module_are_copied_and_those_of_other_subfolders_are_not(folder, tmp_path):
    for name in ("2_Dense", "checkpoint-500"):
        (folder / name).mkdir()
        save_file({"linear.weight": torch.ones(2, 2)}, folder / name / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "2_Dense"}]))

    assert copied(folder, tmp_path / "out") == ["1_Pooling/config.json", "2_Dense/model.safetensors"]


@pytest.mark.parametrize("modules", ["[", "[1]", "{}", '[{"path": ["x"]}]', "[" * 100_000])
def test_a_broken_list_of_modules_names_none(folder, tmp_path, modules):
    (folder / "modules.json").write_text(modules)
    assert copied(folder, tmp_path / "out") == ["1_Pooling/config.json"]


def test_a_copy_never_replaces_another_file(folder, tmp_path):
    (tmp_path / "out" / "1_Pooling").mkdir(parents=True)
    (tmp_path / "out" / "1_Pooling" / "config.json").write_text("mine")
    with pytest.raises(InputError, match="exists with other bytes"):
        copy_subfolders(folder, tmp_path / "out")


def test_an_output_folder_inside_the_model_is_not_copied_into_itself(folder):
    into = folder / "out"
    into.mkdir()
    (into / "config.json").write_text("{}")
    assert copied(folder, into) == ["1_Pooling/config.json"]


def test_the_command_sends_a_folder_and_says_what_it_leaves_out(
    folder, serve, service, layer, capsys, tmp_path
):
    result = {"eckart.safetensors": b"smaller", "config.json": b"{}", "vocab.txt": b"a"}
    respond, stored = service(result, layers=[layer("x", shape=(4, 4), rank=1)])
    out = tmp_path / "out"

    assert main(["compress", str(folder), "--rank", "1", "--url", serve(respond), "--out", str(out)]) == 0

    assert sorted(stored) == sorted([*SENT, "model.safetensors"])
    said = capsys.readouterr()
    assert "left out: LICENSE, modeling.py, my notes.txt, pytorch_model.bin" in said.err
    assert said.out.endswith(f"{out}/report.json\n{out}/1_Pooling/config.json\n")
    for name, content in result.items():
        assert (out / name).read_bytes() == content


def test_a_file_given_by_itself_says_nothing_of_others(folder, serve, service, layer, capsys, tmp_path):
    respond, stored = service({"model.safetensors": b"x"}, layers=[layer("x", shape=(4, 4), rank=1)])
    source, out = str(folder / "model.safetensors"), str(tmp_path / "out")

    assert main(["compress", source, "--rank", "1", "--url", serve(respond), "--out", out]) == 0
    assert "left out" not in capsys.readouterr().err
    assert list(stored) == ["model.safetensors"]


def test_a_calibrations_companions_are_not_sent(folder, serve, service, layer):
    respond, stored = service({}, layers=[layer("x", shape=(4, 4), rank=1)])
    with Client(serve(respond)) as client:
        client.compress("stored-model", {"rank": 1}, calibration=folder)
    assert list(stored) == ["model.safetensors"]


@pytest.mark.parametrize("name", ["../config.json", "x/config.json", ".config.json", "report.json", "a.py"])
def test_a_hostile_name_in_a_report_never_becomes_a_path(name, serve, report, tmp_path):
    def respond(exchange):
        exchange.answer(200, report(files={name: b"{}"}))

    with Client(serve(respond)) as client, pytest.raises(Exception, match="nothing was written"):
        client.download("J1", tmp_path / "out")
    assert list(tmp_path.rglob("*.json")) == []
