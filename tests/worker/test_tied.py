"""worker/tied.py: a weight with the bytes of an unselected tensor stays dense, and no other."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from schemas.format.files import open_checkpoint
from schemas.spec import CompressionSpec
from worker.context import TensorReaders
from worker.tied import keep_tied
from worker.work_plan import plan_work


def tied_names(source, **spec):
    work = plan_work(open_checkpoint(source), CompressionSpec.model_validate({"rank": 4, **spec}))
    with TensorReaders() as readers:
        kept = keep_tied(work, readers, check_canceled=lambda: None)
    return [layer.name for layer in kept.layers if layer.reason == "tied"]


@pytest.mark.parametrize("layout", ["factored", "dense"])
def test_a_head_of_llama_that_is_stored_again_beside_its_embedding_stays_dense(compress, save, layout):
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    tensors = {name: tensor.clone() for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    written = compress(save(tensors), rank={"ratio": 0.5}, layout=layout)
    (head,) = [layer for layer in written.report.layers if layer.name == "lm_head"]

    assert (head.outcome, head.reason) == ("kept", "tied")
    assert torch.equal(written.tensors()["lm_head.weight"], tensors["model.embed_tokens.weight"])
    rules = {entry.rule: entry.names for entry in written.report.not_selected}
    assert rules["tied"] == ("lm_head.weight",)
    assert written.report.totals.layers_factored == 7
    # Only with the head is it more than half of all parameters.
    assert any("of all parameters are not selected" in warning for warning in written.report.warnings)


def test_bytes_dtype_and_shape_must_all_be_equal(save, gaussian):
    embedding = gaussian(300, 40)
    last_differs, first_differs = embedding.clone(), embedding.clone()
    last_differs[-1, -1] += 1
    first_differs[0, 0] += 1
    tensors = {
        "embed.weight": embedding,
        "same.weight": embedding.clone(),
        "last.weight": last_differs,
        "first.weight": first_differs,
        "turned.weight": embedding.reshape(40, 300).clone(),
        "bits.weight": embedding.view(torch.int32).view(torch.float32).reshape(600, 20).clone(),
        "zero.weight": torch.zeros(0, 40),
        "wte.weight": torch.zeros(0, 40),
    }

    assert tied_names(save(tensors)) == ["same"]
    assert tied_names(save(tensors), exclude=["same"]) == ["embed"]
    assert tied_names(save(tensors), exclude=[]) == []


def test_a_tensor_in_another_shard_is_found(save_sharded, gaussian):
    embedding = gaussian(64, 40)
    source = save_sharded([{"embed.weight": embedding}, {"head.weight": embedding.clone()}])

    assert tied_names(source) == ["head"]


def test_a_tied_weight_is_not_paid_from_a_budget(compress, save, gaussian):
    tensors = {"embed.weight": gaussian(256, 32), "fc.weight": gaussian(64, 64)}
    tied = tensors | {"head.weight": tensors["embed.weight"].clone()}
    plain, again = (compress(save(some), rank={"budget": 0.5}).report.layers for some in (tensors, tied))

    assert {x.name: x.rank for x in again} == {x.name: x.rank for x in plain} | {"head": None}


def test_comparing_stops_when_the_job_is_canceled(save, gaussian):
    embedding = gaussian(64, 40)
    source = save({"embed.weight": embedding, "head.weight": embedding.clone()})
    work = plan_work(open_checkpoint(source), CompressionSpec(rank=4))

    def cancel():
        raise KeyboardInterrupt

    with TensorReaders() as readers, pytest.raises(KeyboardInterrupt):
        keep_tied(work, readers, check_canceled=cancel)
