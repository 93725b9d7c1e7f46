"""schemas/model_card.py: the README.md of a result that is a model's folder."""

import pytest

from schemas.model_card import model_card
from schemas.report import LayerReport, Report

BERT = {"model_type": "bert", "architectures": ["BertModel"]}
TOTALS = {
    "parameters_before": 1000,
    "parameters_after": 600,
    "parameter_savings": 0.4,
    "compression_factor": 1.67,
    "bytes_before": 4000,
    "bytes_after": 2400,
    "relative_error": 0.125,
    "layers_factored": 0,
    "layers_kept": 0,
    "seconds": 1.0,
}


def report(**totals):
    side = {"files": (), "parameters": 0, "bytes": 0}
    return Report.model_validate(
        {
            "version": 1,
            "job_id": None,
            "created_at": "2026-01-02T03:04:05Z",
            "spec": {"rank": {"ratio": 0.5}, "layout": "factored"},
            "environment": {},
            "warnings": (),
            "input": side,
            "calibration": None,
            "output": side,
            "totals": TOTALS | totals,
            "layers": (),
        }
    )


def card(config=BERT, companions=("config.json",), original=b"", *, is_factored=True, **totals):
    return model_card(report(**totals), config, companions, original, is_factored=is_factored).decode()


def code(text):
    return text.partition("```python\n")[2].partition("```")[0]


def test_it_has_the_figures_and_the_three_lines_that_run_it():
    text = card()

    assert "1,000 → 600 (40.0% saved)" in text
    assert "| relative error of the factored weights | 0.125 |" in text
    assert code(text).splitlines() == [
        "import eckart.transformers",
        "from transformers import BertModel",
        'model = BertModel.from_pretrained(".")',
    ]


def test_a_dense_folder_needs_no_import():
    assert code(card(is_factored=False)).splitlines() == [
        "from transformers import BertModel",
        'model = BertModel.from_pretrained(".")',
    ]


def test_a_sentence_transformers_folder_is_run_by_that_library():
    text = card(companions=("config.json", "modules.json"))
    assert 'SentenceTransformer(".")' in code(text)
    assert text.startswith("---\nlibrary_name: sentence-transformers\ntags:\n")


@pytest.mark.parametrize(
    "config",
    [{"_class_name": "UNet2DConditionModel"}, BERT | {"quantization_config": {"quant_method": "gptq"}}],
)
def test_what_transformers_cannot_load_is_loaded_by_load_compressed(config):
    assert "load_compressed(model" in code(card(config))
    assert "from_pretrained(" not in code(card(config))


def test_the_front_matter_and_the_text_of_the_input_are_kept():
    front = "---\nlicense: mit\nbase_model: org/name\n---\n"
    text = card(original=(front + "# A model\n\nIts text.\n").encode())

    assert text.startswith(front)
    assert text.endswith("\n---\n\n# A model\n\nIts text.\n")


@pytest.mark.parametrize(
    "original",
    [
        b"---\nnever closed",
        b"--- no\nx\n---\n",
        b"\xff\xfe not UTF-8",
        b"---",
        b"text\n---\nlicense: x\n---\n",
    ],
)
def test_what_is_no_front_matter_is_text(original):
    text = model_card(report(), BERT, ["config.json"], original, is_factored=True)

    assert text.startswith(b"---\nlibrary_name: transformers\ntags:\n- eckart\n")
    assert text.endswith(b"\n---\n\n" + original)


def test_an_empty_front_matter_and_windows_line_ends_are_known():
    assert card(original=b"---\n---\nx").startswith("---\n---\n\n<!--")
    assert card(original=b"---\r\nlicense: mit\r\n---\r\nx").startswith(
        "---\r\nlicense: mit\r\n---\r\n\n<!--"
    )


@pytest.mark.parametrize(
    "first",
    ['A").__class__("', "os\nimport os", "```", "<script>", "A" * 200, 7, None, ["A"], "Ünicode"],
)
def test_a_hostile_class_name_never_reaches_the_card(first):
    text = card(BERT | {"architectures": [first]})

    assert 'AutoModel.from_pretrained(".")' in code(text)
    assert text.count("```") == 2


def test_a_model_with_code_of_its_own_is_loaded_by_the_auto_class():
    text = card(BERT | {"auto_map": {"AutoModel": "modeling.Mine"}, "architectures": ["Mine"]})
    assert "from transformers import AutoModel\n" in code(text)


def test_a_model_that_was_compressed_before_is_loaded_in_the_same_way():
    config = BERT | {"quantization_config": {"quant_method": "eckart"}}
    assert code(card(config)) == code(card())


def test_a_folder_with_modules_of_its_own_says_which_files_it_needs():
    text = card(companions=("config.json", "modules.json"))
    assert "copy them\nfrom the folder of the model that this one was made from" in text
    assert "modules.json" not in card()


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "model.safetensors.index.fp16.json"])
def test_a_dense_folder_of_a_variant_is_loaded_as_one(name):
    names = ["model.fp16-00001-of-00002.safetensors", "config.json", name]
    files = [{"name": each, "size_bytes": 1, "sha256": "0" * 64} for each in names]
    document = report().model_dump(mode="json")
    document["output"]["files"] = files
    text = model_card(Report.model_validate(document), BERT, names, b"", is_factored=False).decode()

    assert code(text).endswith('model = BertModel.from_pretrained(".", variant="fp16")\n')


def test_a_factored_folder_of_a_variant_hides_the_lines_that_load_it_as_one_once_it_is_dense():
    document = report().model_dump(mode="json")
    document["input"]["files"] = [{"name": "model.fp16.safetensors", "size_bytes": 1, "sha256": "0" * 64}]
    text = model_card(Report.model_validate(document), BERT, ["config.json"], b"", is_factored=True).decode()

    hidden = text.partition("<!-- eckart: once expanded\n")[2].partition("-->")[0]
    assert hidden.endswith('model = BertModel.from_pretrained(".", variant="fp16")\n')
    assert "variant" not in code(text)


def replaced(*methods):
    """Return a report whose layers were replaced by these methods."""
    layer = {
        **dict.fromkeys(LayerReport.model_fields),
        "name": "x",
        "tensor": "x.weight",
        "shape": (4, 4),
        "outcome": "factored",
        "rank": 0,
        "transposed": False,
        "calibrated": False,
        "bias_corrected": False,
        "dtype": "F32",
        "seconds": 0.1,
        **dict.fromkeys(("break_even_rank", "parameters_before", "parameters_after"), 1),
        **dict.fromkeys(("bytes_before", "bytes_after"), 1),
    }
    layers = [LayerReport.model_validate(layer | {"method": method}) for method in methods]
    return report(predicted_loss=0.0125).model_copy(update={"layers": tuple(layers)})


@pytest.mark.parametrize(
    ("methods", "tags", "said"),
    [
        (["svd", "cx"], "low-rank", "2 layers were replaced by low-rank factors."),
        (["int8"], "quantized", "1 layer was replaced by integers."),
        (["pivot"], "low-rank", "1 layer was replaced by some of their rows and coefficients"),
        (["int4+svd"], "low-rank quantized", "replaced by integers and low-rank factors."),
        (
            ["int8", "svd", "int8"],
            "low-rank quantized",
            "3 layers were replaced: 2 by integers, 1 by low-rank factors.",
        ),
        ([], "", "0 layers were replaced."),
    ],
)
def test_tags_and_text_say_by_what_weights_were_replaced(methods, tags, said):
    text = model_card(replaced(*methods), BERT, ["config.json"], b"", is_factored=True).decode()

    front = text.split("---\n")[1]
    assert front == "library_name: transformers\ntags:\n" + "".join(
        f"- {tag}\n" for tag in ["eckart", *tags.split()]
    )
    assert said in text
    assert "| predicted rise of the loss | 0.0125 |" in text


def test_integers_alone_need_another_package_and_no_import_of_ours():
    text = model_card(replaced("int8"), BERT, ["config.json"], b"", is_factored=True, is_plain=True).decode()

    assert "pip install compressed-tensors" in text
    assert "eckart.transformers" not in text
    assert code(text).startswith("from transformers import BertModel\n")


@pytest.mark.parametrize("name", ['A").__class__("', "```", 7])
def test_a_hostile_class_name_of_a_diffusers_model_never_reaches_the_card(name):
    text = card({"_class_name": name})

    assert code(text) == 'from eckart.torch import load_compressed\n\nload_compressed(model, ".")\n'
    assert text.count("```") == 2
