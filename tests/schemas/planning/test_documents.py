"""schemas/planning/documents.py: the document of a stored checkpoint."""

from dataclasses import replace
from itertools import accumulate

from schemas.checkpoint import Checkpoint, FileInfo, StoredTensor
from schemas.format.files import CheckpointFiles
from schemas.format.header import Header
from schemas.format.metadata import FactoredLayer, with_factored
from schemas.format.table import TensorTable
from schemas.format.tensor import DTYPE_BITS, TensorInfo
from schemas.planning.documents import DEFAULT_SPEC, checkpoint_text
from schemas.planning.planner import make_plan, would_be_factored

FACTORED = FactoredLayer(method="svd", rank=64, shape=(64, 384), dtype="F32")
FILE = FileInfo(name="model.safetensors", size_bytes=1000, sha256="0" * 64)


def checkpoint_document(*args, **options):
    return Checkpoint.model_validate_json("".join(checkpoint_text(*args, **options)))


def tensor(name: str, dtype: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, dtype, shape, 0, 0)


def stored(tensors, metadata=None) -> CheckpointFiles:
    """Lay out the tensors in one file, if there are any."""
    if not tensors:
        return CheckpointFiles({})
    ends = accumulate(each.parameters * DTYPE_BITS[each.dtype] // 8 for each in tensors)
    table = TensorTable.of(replace(each, end=end) for each, end in zip(tensors, ends, strict=True))
    return CheckpointFiles({FILE.name: Header(metadata or {}, table, 64, 64 + table.data_bytes)})


def test_each_tensor_says_whether_it_would_be_factored_and_up_to_which_rank_it_pays():
    tensors = [
        tensor("a.weight", "F32", 384, 384),
        tensor("word_embeddings.weight", "F32", 100, 10),
        tensor("norm.weight", "F32", 384),
        tensor("a.bias", "F32", 384),
        tensor("conv.weight", "F32", 3, 3, 3, 3),
        tensor("codes.weight", "I8", 8, 8),
        tensor("thin.weight", "BF16", 1, 8),
        tensor("scale", "F32"),
    ]
    document = checkpoint_document("m", [FILE], [], stored(tensors))
    assert [(t.selected, t.break_even_rank) for t in document.tensors] == [
        (True, 191),
        (False, 9),
        (False, None),
        (False, None),
        (False, None),
        (False, None),
        (False, 0),
        (False, None),
    ]
    assert document.parameters == 384 * 384 + 1000 + 384 + 384 + 81 + 64 + 8 + 1
    assert (document.bytes, document.complete) == (1000, True)


MIXED = [
    tensor("a.weight", "F32", 64, 64),
    tensor("a.bias", "F32", 64),
    tensor("b.weight", "F32", 64, 48),
    tensor("b.weight_scale", "F32", 64),
    tensor("c.weight", "F32", 64, 48),
    tensor("c.0.weight", "F32", 8, 48),
    tensor("d.0.weight", "F32", 8, 48),
    tensor("d.1.weight", "F32", 64, 8),
    tensor("block.gate.weight", "F32", 8, 64),
    tensor("wte.weight", "F32", 100, 64),
    tensor("lm_head.weight", "F32", 100, 64),
    tensor("q.lora_A.weight", "F32", 8, 64),
    tensor("q.lora_B.weight", "F32", 64, 8),
    tensor("attn.in_proj_weight", "F32", 96, 32),
    tensor("attn.out_proj.weight", "F32", 32, 32),
    tensor("conv.weight", "F32", 8, 8, 3, 3),
    tensor("thin.weight", "F32", 1, 64),
    tensor("codes.weight", "I8", 64, 64),
]


def test_what_a_document_says_of_each_tensor_is_what_a_plan_of_all_would_do():
    known = {"factored": {"d"}, "aliases": {"wte.weight": "lm_head.weight"}}
    layers = make_plan(MIXED, DEFAULT_SPEC, **known).layers
    planned = {layer.tensor for layer in layers if layer.reason is None}

    assert would_be_factored(MIXED, MIXED, DEFAULT_SPEC, **known) == planned
    for one in MIXED:
        assert would_be_factored([one], MIXED, DEFAULT_SPEC, **known) == planned & {one.name}
    assert "a.weight" in planned
    assert not planned & {"b.weight", "c.weight", "d.0.weight", "attn.out_proj.weight"}


def test_factors_are_not_factored_again():
    tensors = [tensor("a.0.weight", "F32", 64, 384), tensor("b.0.weight", "F32", 384, 384)]
    document = checkpoint_document("m", [FILE], [], stored(tensors, with_factored({}, {"a": FACTORED})))
    assert [t.selected for t in document.tensors] == [False, True]


def test_nothing_missing_means_complete():
    assert checkpoint_document("m", [], [], stored([])).complete
    assert not checkpoint_document("m", [], ["model-00002-of-00002.safetensors"], stored([])).complete


def test_every_field_is_described():
    for model in (Checkpoint, StoredTensor):
        assert all(field.description for field in model.model_fields.values())
