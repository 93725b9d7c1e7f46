"""Padding in real models: a padded batch gives the Gram matrices of its samples, each run by itself."""

import warnings

import pytest
import torch
import transformers
from torch import nn

from eckart import InputError, calibrate
from eckart.calibration_pass import collect, linear_layers
from eckart.progress import silent
from eckart.statistics_file import read_statistics
from eckart.sums import SumStore

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
LENGTHS = (6, 3, 1)
DECODER_LENGTHS = (2, 6, 4)


def make_t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(vocab_size=50, decoder_start_token_id=0, pad_token_id=0, **sizes)
    return transformers.T5ForConditionalGeneration(config)


def make_bart():
    config = transformers.BartConfig(
        vocab_size=50,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
    )
    return transformers.BartForConditionalGeneration(config)


def make_bert():
    config = transformers.BertConfig(**SIZES, intermediate_size=24)
    return transformers.BertForTokenClassification(config)


def make_llama():
    config = transformers.LlamaConfig(**SIZES, intermediate_size=24, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config)


def make_gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)
    )


class Experts(nn.Module):
    """Each token goes to one of three experts, which take rows of all samples in one matrix."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.router = nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, input_ids, attention_mask=None):
        del attention_mask
        hidden = self.embed(input_ids)
        rows = hidden.view(-1, hidden.shape[-1])
        choice = self.router(rows).argmax(-1)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            (chosen,) = torch.where(choice == number)
            out.index_add_(0, chosen.flip(0), expert(rows[chosen.flip(0)]))
        return self.head((rows + out).reshape(hidden.shape))


class TokensFirst(nn.Module):
    """Hidden states are [tokens, batch, n], as many tokens as samples."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0)
        self.head = nn.Linear(16, 5)

    def forward(self, input_ids, attention_mask=None):
        padding = None if attention_mask is None else attention_mask == 0
        hidden = self.embed(input_ids).transpose(0, 1)
        return self.head(self.layer(hidden, src_key_padding_mask=padding))


DECODERS = {"t5": make_t5, "bart": make_bart}
OTHERS = {
    "bert": make_bert,
    "llama": make_llama,
    "gpt2": make_gpt2,
    "experts": Experts,
    "tokens first": TokensFirst,
}


def made(make):
    torch.manual_seed(0)
    return make().eval()


def padded(lengths, seed):
    """Return tokens [samples, longest], drawn also where they are padding, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (len(lengths), max(lengths)), generator=generator)
    return ids, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def statistics_of(model, batches, tmp_path):
    file = read_statistics(calibrate(model, batches, tmp_path / "s.safetensors", dtype="float64"))
    return {name + end: file.load(tensor) for name, own in file.layers.items() for end, tensor in own.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, sums in found.items():
        torch.testing.assert_close(sums, expected[name], rtol=1e-4, atol=1e-4 * expected[name].abs().max())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", DECODERS)
def test_each_mask_follows_its_own_tokens_though_both_streams_are_of_one_shape(name, attention, tmp_path):
    model = made(DECODERS[name])
    model.set_attn_implementation(attention)
    ids, mask = padded(LENGTHS, 1)
    decoder_ids, decoder_mask = padded(DECODER_LENGTHS, 2)
    assert ids.shape == decoder_ids.shape
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids}
    alone = [
        {"input_ids": ids[i : i + 1, :n], "decoder_input_ids": decoder_ids[i : i + 1, :d]}
        for i, (n, d) in enumerate(zip(LENGTHS, DECODER_LENGTHS, strict=True))
    ]
    found = statistics_of(model, [batch | {"decoder_attention_mask": decoder_mask}], tmp_path)

    assert_same(found, statistics_of(model, alone, tmp_path))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("given", ["decoder_input_ids", "labels"])
def test_a_mask_of_the_encoder_leaves_out_no_token_of_the_decoder(name, given, tmp_path):
    model = made(DECODERS[name])
    ids, mask = padded(LENGTHS, 1)
    decoder_ids, _ = padded((6, 6, 6), 2)
    alone = [{"input_ids": ids[i : i + 1, :n], given: decoder_ids[i : i + 1]} for i, n in enumerate(LENGTHS)]
    found = statistics_of(model, [{"input_ids": ids, "attention_mask": mask, given: decoder_ids}], tmp_path)

    assert_same(found, statistics_of(model, alone, tmp_path))


@pytest.mark.parametrize("name", OTHERS)
def test_padding_is_left_out_wherever_its_rows_go(name, tmp_path):
    model = made(OTHERS[name])
    ids, mask = padded((3, 2, 1) if name == "tokens first" else LENGTHS, 1)
    alone = [{"input_ids": ids[i : i + 1, : int(row.sum())]} for i, row in enumerate(mask)]
    found = statistics_of(model, [{"input_ids": ids, "attention_mask": mask}], tmp_path)

    assert_same(found, statistics_of(model, alone, tmp_path))


def test_labels_that_are_the_tokens_themselves_do_not_hide_the_mask(tmp_path):
    model = made(make_llama)
    ids, mask = padded(LENGTHS, 1)
    alone = [{"input_ids": ids[i : i + 1, :n]} for i, n in enumerate(LENGTHS)]
    found = statistics_of(model, [{"input_ids": ids, "attention_mask": mask, "labels": ids}], tmp_path)

    assert_same(found, statistics_of(model, alone, tmp_path))


def test_a_mask_that_is_passed_in_order_counts_too(tmp_path):
    model = made(make_bert)
    ids, mask = padded(LENGTHS, 1)

    assert_same(
        statistics_of(model, [(ids, mask)], tmp_path),
        statistics_of(model, [{"input_ids": ids, "attention_mask": mask}], tmp_path),
    )


def test_a_picture_has_no_padding_though_it_has_as_many_patches_as_the_text_has_tokens(tmp_path):
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=text | {"vocab_size": 50, "eos_token_id": 49},
        vision_config=text | {"image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    ids, mask = padded((5, 2), 1)
    ids[:, 1] = 49  # where CLIP takes the text's vector from
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(2, 3, 8, 8)}
    found = statistics_of(model, [batch], tmp_path)

    expected = statistics_of(model, [{name: batch[name] for name in ("input_ids", "pixel_values")}], tmp_path)
    vision = [name for name in found if name.startswith("vision_model.")]
    assert len(vision) == 21  # three of them of the convolution that makes the patches
    assert all(torch.equal(found[name], expected[name]) for name in vision)
    assert not torch.equal(
        found["text_model.encoder.layers.0.mlp.fc1.gram"],
        expected["text_model.encoder.layers.0.mlp.fc1.gram"],
    )


def test_the_tensors_of_a_batch_are_as_they_were():
    ids, mask = padded(LENGTHS, 1)
    model = made(make_bert)
    batches = [{"input_ids": ids, "attention_mask": mask}]
    collect(model, linear_layers(model, lambda _name: True), batches, SumStore(), silent)

    assert not vars(ids)
    assert not vars(mask)


def test_it_is_said_when_a_mask_cannot_be_followed(tmp_path):
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 4), nn.Linear(4, 2)

        def forward(self, input_ids, attention_mask):
            del attention_mask
            return self.head(torch.from_numpy(self.embed(input_ids).numpy()))

    ids, mask = padded(LENGTHS, 1)
    with pytest.warns(UserWarning, match="padding was counted"):
        calibrate(Apart(), [{"input_ids": ids, "attention_mask": mask}], tmp_path / "g.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = {"input_ids": ids, "attention_mask": torch.ones_like(mask)}
        calibrate(Apart(), [whole], tmp_path / "g.safetensors")


def test_a_head_that_is_tied_to_the_embedding_has_no_gram_matrix(tmp_path):
    sizes = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "tie_word_embeddings": True}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    names = statistics_of(model, [{"input_ids": torch.arange(6)[None]}], tmp_path)

    assert "model.layers.0.mlp.up_proj.gram" in names
    assert "lm_head.gram" not in names
    with pytest.raises(InputError, match="no Linear, Conv1D or convolution that is included"):
        calibrate(model, [], tmp_path / "none.safetensors", include=["lm_head"])
