"""schemas/format/names.py: which names are legal, which are an index's, and what an illegal one becomes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.format.names import (
    CHECKPOINT_ID,
    FILE_NAME,
    index_of,
    is_companion,
    is_file_name,
    is_index,
    legal_name,
    single_weight_file,
)


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("model.safetensors", True),
        ("model.safetensors.index.json", True),
        ("model.safetensors.index.fp16.json", True),
        ("model.safetensors.index.non_ema.fp16.json", True),
        ("model.safetensors.index..json", False),
        ("model.safetensors.index.f p.json", False),
        ("model.safetensors.fp16.json", False),
        ("a.safetensors", True),
        ("model-00001-of-00002.safetensors", True),
        ("m" * 116 + ".safetensors", True),
        ("m" * 117 + ".safetensors", False),
        ("m" * 105 + ".safetensors.index.json", True),
        ("m" * 106 + ".safetensors.index.json", False),
        ("m" * 106 + ".safetensors.index.fp16.json", False),
        (".safetensors", False),
        ("-m.safetensors", False),
        ("m.safetensors\n", False),
        ("m.safetensors.part", False),
        ("m.json", False),
        ("m/n.safetensors", False),
        ("é.safetensors", False),
        ("", False),
    ],
)
def test_a_file_name_is_an_id_with_the_ending_of_a_weight_file_or_an_index(name, legal):
    assert (FILE_NAME.fullmatch(name) is not None) == legal
    assert not legal or CHECKPOINT_ID.fullmatch(name)


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("a", True),
        ("my-model_1.2", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        (".a", False),
        ("a\n", False),
    ],
)
def test_an_id_is_up_to_128_plain_characters(name, legal):
    assert (CHECKPOINT_ID.fullmatch(name) is not None) == legal


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("model.safetensors.index.json", True),
        ("diffusion_pytorch_model.safetensors.index.fp16.json", True),
        ("model.safetensors", False),
        ("model.fp16.safetensors", False),
        ("config.json", False),
        ("index.json", False),
    ],
)
def test_an_index_is_known_by_its_name(name, index):
    assert is_index(name) == index


@pytest.mark.parametrize(
    ("stem", "index"),
    [
        ("model", "model.safetensors.index.json"),
        ("diffusion_pytorch_model.fp16", "diffusion_pytorch_model.safetensors.index.fp16.json"),
        ("llama-3.1", "llama-3.1.safetensors.index.json"),
    ],
)
def test_shards_of_a_variant_have_the_index_that_transformers_and_diffusers_write(stem, index):
    assert index_of(stem) == index
    assert is_index(index)


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("model.safetensors", "model.safetensors"),
        ("my model (1).safetensors", "my-model-1.safetensors"),
        ("modèle.safetensors", "modele.safetensors"),
        ("mode\u0300le.safetensors", "modele.safetensors"),
        ("model.SAFETENSORS", "model.safetensors"),
        ("Model.SafeTensors.Index.JSON", "Model.safetensors.index.json"),
        ("my model.safetensors.index.fp16.json", "my-model.safetensors.index.fp16.json"),
        ("x.safetensors.index.é.json", "x.safetensors.index.e.json"),
        ("unet/model.safetensors", "model.safetensors"),
        ("C:\\models\\model.safetensors", "model.safetensors"),
        ("../../etc/model.safetensors", "model.safetensors"),
        ("模型.safetensors", "model.safetensors"),
        ("模型-v2.safetensors", "v2.safetensors"),
        (".hidden.safetensors", "hidden.safetensors"),
        (".safetensors", "model.safetensors"),
        ("a\x00b\n.safetensors", "a-b.safetensors"),
        ("m" * 200 + "-00001-of-00002.safetensors", "m" * 101 + "-00001-of-00002.safetensors"),
        ("a--b- (1) -c.safetensors", "a--b-1-c.safetensors"),
        ("model/chat templäte (1).JINJA", "chat-template-1.jinja"),
        ("m" * 200 + ".txt", "m" * 124 + ".txt"),
        ("模型.json", "model.json"),
    ],
)
def test_a_name_with_other_letters_is_made_legal(name, legal):
    assert legal_name(name) == legal
    assert is_file_name(legal)
    assert legal_name(legal) == legal


ENDINGS = [
    "",
    ".safetensors",
    ".SafeTensors",
    ".safetensors.index.json",
    ".safetensors.index.fp16.json",
    ".txt",
]


@settings(deadline=None)
@given(st.text(max_size=200), st.sampled_from(ENDINGS), st.text(max_size=3))
def test_whatever_a_file_is_called_it_gets_a_legal_name_or_none(stem, ending, rest):
    legal = legal_name(stem + ending + rest)

    assert legal is None or is_file_name(legal)
    assert legal is None or legal_name(legal) == legal
    assert legal is not None or not ending or rest


@pytest.mark.parametrize(
    "name",
    ["blob", "model.bin", "model.safetensors.part", "", "x.safetensors/", "a.index.json", "report.JSON"],
)
def test_a_name_of_another_kind_of_file_is_not_made_legal(name):
    assert legal_name(name) is None


def test_of_a_name_longer_than_any_file_has_only_the_end_is_read():
    # All of it would take quadratic time to read.
    assert legal_name("m" + "\u0300" * 300 + ".txt") == "model.txt"


@pytest.mark.parametrize(
    ("name", "companion"),
    [
        ("config.json", True),
        ("m" * 124 + ".txt", True),
        ("m" * 125 + ".txt", False),
        ("model.safetensors", False),
        ("model.safetensors.index.json", False),
        ("pytorch_model.bin.index.json", False),
        ("Report.json", False),
        ("../config.json", False),
        (".manifest.json", False),
        ("config.json\n", False),
        ("modeling.py", False),
    ],
)
def test_a_companion_is_known_by_its_ending_and_has_a_plain_name(name, companion):
    assert is_companion(name) == companion


@pytest.mark.parametrize(
    ("names", "single"),
    [
        (["model.safetensors"], "model.safetensors"),
        (
            ["model.safetensors.index.json", "model-00001-of-00001.safetensors"],
            "model-00001-of-00001.safetensors",
        ),
        (["config.json", "model.safetensors"], "model.safetensors"),
        (["a.safetensors", "b.safetensors", "m.safetensors.index.json"], None),
        ([], None),
    ],
)
def test_one_weight_file_is_one_file_with_an_index_or_without(names, single):
    assert single_weight_file(names) == single
