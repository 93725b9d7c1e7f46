"""Classes of transformers and peft: the file that they save, compressed, loads and runs as its product."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file

from eckart import LoadError
from eckart.torch import LowRankConv1D, LowRankLinear, expand, load_compressed
from tests.eckart.torch.factoring import close, factored, matrices, products, write

IDS = torch.tensor([[1, 5, 10, 3]])
SMALL = {"vocab_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}


def saved(model, folder):
    """Return what a model's own library saves of it."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def compressed(model, folder, *names, change=str, transposed=()):
    """Write the model's file with every matrix factored, or these, under changed names.

    Returns the file, and the model with the products in place of the weights.
    """
    state, layers = factored(
        saved(model, folder), *(names or matrices(saved(model, folder))), transposed=transposed
    )
    with torch.no_grad():
        for name, weight in products(state, layers).items():
            model.get_parameter(f"{name}.weight").copy_(weight)
    state = {change(name): tensor for name, tensor in state.items()}
    path = write(folder / "x.safetensors", state, {change(name): entry for name, entry in layers.items()})
    return path, model.eval()


def loaded(make, path, **options):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = load_compressed(make().eval(), path, **options)
    mine = [str(one.message) for one in told if "cannot run as factors" in str(one.message)]
    assert len(mine) <= 1
    return model, "".join(mine)


def made(kind, config):
    torch.manual_seed(0)
    return kind(config)


def run(model, **more):
    with torch.no_grad():
        output = model(input_ids=IDS, **more)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


T5 = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=4)


def test_t5_runs_though_it_reads_its_layers_and_its_tables_are_embeddings(tmp_path):
    path, dense = compressed(made(transformers.T5ForConditionalGeneration, T5), tmp_path)
    model, told = loaded(lambda: transformers.T5ForConditionalGeneration(T5), path)

    assert close(run(model, decoder_input_ids=IDS), run(dense, decoder_input_ids=IDS))
    assert isinstance(model.encoder.block[0].layer[1].DenseReluDense.wo, LowRankLinear)
    assert "shared (Embedding is no" in told
    assert told.count("relative_attention_bias (Embedding is no") == 2


FALCON = transformers.FalconConfig(hidden_size=16, **SMALL)


def test_falcon_keeps_its_own_class_of_linear(tmp_path):
    from transformers.models.falcon.modeling_falcon import FalconLinear

    path, dense = compressed(made(transformers.FalconModel, FALCON), tmp_path)
    model, told = loaded(lambda: transformers.FalconModel(FALCON), path)

    assert close(run(model), run(dense))
    assert [type(part) for part in model.h[0].mlp.dense_h_to_4h] == [FalconLinear, FalconLinear]
    assert "h." not in told


GPT2 = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=8)


@pytest.mark.parametrize("turned", [True, False])
def test_the_hubs_gpt2_loads_into_the_model_with_a_head(tmp_path, turned):
    """The hub's file has no prefix, and holds masks that the class no longer has."""
    model = made(transformers.GPT2LMHeadModel, GPT2)
    state = saved(model, tmp_path)
    names = [name for name in matrices(state) if ".c_" in name]
    path, dense = compressed(
        model,
        tmp_path,
        *names,
        change=lambda name: name.removeprefix("transformer."),
        transposed=names if turned else (),
    )
    file = load_file(path)
    _, layers = factored(state, *names, transposed=names if turned else ())
    layers = {name.removeprefix("transformer."): entry for name, entry in layers.items()}
    write(path, file | {"h.0.attn.bias": torch.ones(1, 1, 8, 8).tril()}, layers)
    model, told = loaded(lambda: transformers.GPT2LMHeadModel(GPT2), path)

    assert close(run(model), run(dense))
    assert isinstance(model.transformer.h[0].attn.c_attn, LowRankConv1D) is turned
    assert ("the other way round" in told) is not turned
    assert model.lm_head.weight is model.transformer.wte.weight


BERT = transformers.BertConfig(hidden_size=16, intermediate_size=32, max_position_embeddings=8, **SMALL)


def test_a_bert_of_another_release_loads_with_its_position_ids(tmp_path):
    path, dense = compressed(made(transformers.BertModel, BERT), tmp_path)
    _, layers = factored(saved(dense, tmp_path), *matrices(saved(dense, tmp_path)))
    write(path, load_file(path) | {"embeddings.position_ids": torch.arange(8)[None]}, layers)
    model, _ = loaded(lambda: transformers.BertModel(BERT), path)

    assert close(run(model), run(dense))


def test_a_tied_head_and_its_bias_stay_tied_beside_factors(tmp_path):
    path, dense = compressed(
        made(transformers.BertForMaskedLM, BERT), tmp_path, "cls.predictions.transform.dense"
    )
    model, _ = loaded(lambda: transformers.BertForMaskedLM(BERT), path)

    assert close(run(model), run(dense))
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias


MARIAN = transformers.MarianConfig(
    vocab_size=40,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    max_position_embeddings=8,
    pad_token_id=0,
    decoder_start_token_id=0,
)


def test_marian_computes_the_position_tables_that_no_file_holds(tmp_path):
    original = made(transformers.MarianMTModel, MARIAN)
    names = [name for name in matrices(saved(original, tmp_path)) if "fc" in name or "proj" in name]
    path, dense = compressed(original, tmp_path, *names)
    assert not [name for name in load_file(path) if "embed_positions" in name]
    model, _ = loaded(lambda: transformers.MarianMTModel(MARIAN), path)

    assert close(run(model, decoder_input_ids=IDS), run(dense, decoder_input_ids=IDS))


LLAMA = transformers.LlamaConfig(hidden_size=16, intermediate_size=32, **SMALL)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("target", ["all-linear", ["q_proj.1", "up_proj.0"]])
def test_peft_trains_adapters_on_the_factors(tmp_path, target):
    import peft

    path, dense = compressed(made(transformers.LlamaForCausalLM, LLAMA), tmp_path)
    model, _ = loaded(lambda: transformers.LlamaForCausalLM(LLAMA), path)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=target))

    assert close(run(wrapped), run(dense))
    wrapped(input_ids=IDS, labels=IDS).loss.backward()
    gradients = [p.grad for n, p in wrapped.named_parameters() if "lora_B" in n and "q_proj.1" in n]
    assert gradients
    assert all(grad.abs().sum() > 0 for grad in gradients)


def test_a_head_that_is_tied_and_stored_twice_stays_tied(tmp_path):
    config = transformers.LlamaConfig(**LLAMA.to_diff_dict() | {"tie_word_embeddings": True})
    original = made(transformers.LlamaForCausalLM, config)
    state = saved(original, tmp_path)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    state, layers = factored(state, "lm_head")
    model, told = loaded(
        lambda: transformers.LlamaForCausalLM(config), write(tmp_path / "x.safetensors", state, layers)
    )

    assert "lm_head (tied to model.embed_tokens.weight)" in told
    assert close(run(model), run(original.eval()))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_router_of_a_class_of_its_own_gets_the_product(tmp_path):
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=32, num_local_experts=4, num_key_value_heads=1, **SMALL
    )
    original = made(transformers.MixtralModel, config).eval()
    state, layers = factored(original.state_dict(), "layers.0.mlp.gate", "layers.0.self_attn.q_proj")
    with torch.no_grad():
        for name, weight in products(state, layers).items():
            original.get_parameter(f"{name}.weight").copy_(weight)
    model, told = loaded(
        lambda: transformers.MixtralModel(config), write(tmp_path / "x.safetensors", state, layers)
    )

    assert "layers.0.mlp.gate (MixtralTopKRouter is no" in told
    assert close(run(model), run(original))


def test_names_that_transformers_converts_are_refused_with_the_ways_that_take_them(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16
    )
    original = made(transformers.ViTModel, config).eval()
    state, layers = factored(saved(original, tmp_path), "encoder.layer.0.intermediate.dense")
    (tmp_path / "small").mkdir()
    write(tmp_path / "small" / "model.safetensors", state, layers)
    config.save_pretrained(tmp_path / "small")

    with pytest.raises(LoadError, match=r"import eckart\.transformers.*eckart expand"):
        load_compressed(transformers.ViTModel(config), tmp_path / "small")
    expand(tmp_path / "small", tmp_path / "dense")
    dense = transformers.ViTModel.from_pretrained(tmp_path / "dense")
    weight = dense.get_parameter("layers.0.mlp.fc1.weight")
    assert close(weight, products(state, layers)["encoder.layer.0.intermediate.dense"])
