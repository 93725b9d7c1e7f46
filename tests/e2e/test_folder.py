"""A model's folder, sent and fetched by the client, runs in the library that made it."""

import io
import json
import shutil
import tarfile

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModel

import eckart.transformers  # noqa: F401 - registers the method

SENTENCES = ["A man is eating food.", "Someone has a meal.", "The stock market fell today."]
SPEC = {"rank": {"ratio": 0.7}}
pytestmark = pytest.mark.filterwarnings(
    "ignore:::transformers", "ignore:::sentence_transformers", "ignore:::torch"
)


@pytest.fixture(scope="module")
def jobs(service, minilm):
    """Compress the folder of all-MiniLM-L6-v2, once in each layout."""
    client = service.client
    return {
        layout: client.compress(minilm.parent, SPEC | {"layout": layout}) for layout in ("factored", "dense")
    }


@pytest.fixture(scope="module")
def folders(service, minilm, jobs, tmp_path_factory):
    directory = tmp_path_factory.mktemp("folders")
    for layout, job in jobs.items():
        service.client.download(job.id, directory / layout, source=minilm.parent)
    return {layout: directory / layout for layout in jobs}


def embed(folder):
    # Imported here, since it takes seconds and all processes that run tests import this file.
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(SENTENCES)


def test_a_real_sentence_encoder_comes_back_as_a_folder_that_runs(folders, minilm):
    factored, dense, before = embed(folders["factored"]), embed(folders["dense"]), embed(minilm.parent)

    assert np.abs(factored - dense).max() < 1e-5
    assert not np.allclose(factored, before, atol=1e-3), "the model was compressed"


def test_all_other_files_are_those_of_the_input(folders, minilm):
    for layout, weights in (("factored", "eckart.safetensors"), ("dense", "model.safetensors")):
        before = {
            path.relative_to(minilm.parent): path for path in minilm.parent.rglob("*") if path.is_file()
        }
        after = {path.relative_to(folders[layout]): path for path in folders[layout].rglob("*")}
        names = {str(name) for name, path in after.items() if path.is_file()}
        kept = {str(name) for name in before} - {".gitattributes", "model.safetensors"}
        assert names == kept | {weights, "report.json"}
        changed = {"README.md", "config.json"} if layout == "factored" else {"README.md"}
        for name in kept - changed:
            assert (folders[layout] / name).read_bytes() == (minilm.parent / name).read_bytes(), name


def test_the_archive_is_the_folder(service, jobs, folders):
    content = httpx.get(f"{service.url}/v1/jobs/{jobs['factored'].id}/archive").content
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}
    here = {path.name: path.read_bytes() for path in folders["factored"].iterdir() if path.is_file()}
    assert found == here


def test_the_card_keeps_the_front_matter_of_the_input(folders, minilm):
    card, before = ((place / "README.md").read_text() for place in (folders["factored"], minilm.parent))

    front, _, text = before.removeprefix("---\n").partition("\n---\n")
    assert card.startswith(f"---\n{front}\n---\n\n<!-- eckart: ")
    assert "\n# Compressed with Eckart\n" in card
    assert card.endswith(text.lstrip("\n"))
    assert 'model = SentenceTransformer(".")' in card


def test_the_report_names_every_file_of_both_sides(folders):
    report = json.loads((folders["factored"] / "report.json").read_text())

    assert {file["name"] for file in report["input"]["files"]} >= {
        "config.json",
        "vocab.txt",
        "model.safetensors",
    }
    listed = {file["name"] for file in report["output"]["files"]}
    assert listed == {path.name for path in folders["factored"].iterdir() if path.is_file()} - {"report.json"}


def test_integers_alone_come_back_in_a_format_that_other_programs_load(service, minilm, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bert").mkdir(exist_ok=True)
        shutil.copy(minilm.parent / name, tmp_path / "bert" / name)
    job = service.client.compress(tmp_path / "bert", {"method": "int8", "include": ["encoder.*"]})
    service.client.download(job.id, tmp_path / "int8")

    config = json.loads((tmp_path / "int8" / "config.json").read_bytes())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert (tmp_path / "int8" / "model.safetensors").is_file()
    tokens = torch.arange(1000, 1016)[None]
    with torch.no_grad():
        after, before = (
            AutoModel.from_pretrained(tmp_path / name).eval()(tokens).last_hidden_state
            for name in ("int8", "bert")
        )
    assert torch.nn.functional.cosine_similarity(after, before, dim=-1).min() > 0.99


def test_integers_of_a_sentence_encoder_stay_in_our_format_since_only_a_part_of_it_is_called(
    service, minilm, tmp_path
):
    job = service.client.compress(minilm.parent, {"method": "int8", "include": ["encoder.*"]})
    service.client.download(job.id, tmp_path / "int8", source=minilm.parent)

    after, before = embed(tmp_path / "int8"), embed(minilm.parent)
    assert (after * before).sum(1).min() > 0.999
