"""PEFT with folders whose layers are factored: new adapters, and those of the model that was compressed."""

import pytest
import torch

from eckart.torch import LowRankLinear
from eckart.transformers import EckartConfig
from tests.eckart.transformers.folders import FIVE, QUIET, low_rank_layers, make

peft = pytest.importorskip("peft")
pytestmark = [QUIET, pytest.mark.filterwarnings("ignore:::peft")]
NAMES = ["llama", "mixtral"]


@pytest.fixture(scope="module", params=NAMES)
def folder(request, tmp_path_factory):
    return make(tmp_path_factory.mktemp(request.param), request.param)


def adapted(model, targets):
    """Put an adapter on a model that changes what it computes."""
    torch.manual_seed(1)
    return peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    ).eval()


def test_an_adapter_goes_on_factors_that_a_list_names(folder, tmp_path):
    model = folder.load()
    targets = [
        f"{name}.{i}"
        for name, layer in model.named_modules()
        if isinstance(layer, LowRankLinear) and name != "lm_head"
        for i in range(len(layer))
    ]
    model = adapted(model, targets)
    found = {name for name, layer in model.named_modules() if isinstance(layer, peft.tuners.lora.LoraLayer)}
    assert found == {f"base_model.model.{name}" for name in targets}
    computed = folder.computed(model)
    assert not torch.allclose(computed, folder.expected, atol=1e-3)

    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(folder.load(), tmp_path)
    assert torch.equal(folder.computed(again.eval()), computed)
    merged = again.merge_and_unload()
    assert low_rank_layers(merged)
    torch.testing.assert_close(folder.computed(merged), computed, rtol=0, atol=1e-5)


@pytest.mark.parametrize("targets", ["all-linear", r".*_proj\.[01]"])
def test_where_peft_cuts_names_short_a_pattern_is_refused(folder, targets):
    """For some classes PEFT keeps only the last parts of names, 0 and 1, which fit the blocks too."""
    model = folder.load()
    if FIVE and "Mixtral" in folder.kind.__name__:
        with pytest.raises(ValueError, match="Target module MixtralDecoderLayer"):
            adapted(model, targets)
        return
    names = [
        name
        for name, layer in adapted(model, targets).named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    ]
    assert any(name.endswith("q_proj.1") for name in names)
    assert any("lm_head" in name for name in names) == (targets == "all-linear")


def test_an_adapter_of_the_original_goes_on_the_products_and_never_on_factors(folder, tmp_path):
    adapted(folder.kind.from_pretrained(folder.dense), ["q_proj", "v_proj"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Target module LowRankLinear"):
        peft.PeftModel.from_pretrained(folder.load(), tmp_path)

    dense = folder.load(quantization_config=EckartConfig(dequantize=True))
    found = folder.computed(peft.PeftModel.from_pretrained(dense, tmp_path).eval())
    product = folder.kind.from_pretrained(folder.product)
    expected = folder.computed(peft.PeftModel.from_pretrained(product, tmp_path).eval())
    assert not torch.allclose(expected, folder.expected, atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
