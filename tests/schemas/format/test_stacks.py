"""A stack of experts is seen as a matrix for each, where the type of the model tells how it is stored."""

from importlib import import_module

import pytest

from schemas.format.stacks import TRANSPOSED, expert_matrices, known_stacks, split_stacks
from schemas.format.tensor import TensorInfo

UP, DOWN = (f"model.layers.0.mlp.experts.{last}" for last in ("gate_up_proj", "down_proj"))
EXPERTS, HIDDEN, INNER = 3, 32, 40


def stack(name, shape, dtype="BF16", start=100):
    size = 2 * shape[0] * shape[1] * shape[2]
    return TensorInfo(name, dtype, shape, start, start + size)


def split(tensor, config):
    orientation = known_stacks(config)
    return list(split_stacks([tensor], [orientation] if orientation else []))


def test_a_matrix_is_a_part_of_its_stack():
    tensor = stack(UP, (EXPERTS, HIDDEN, 2 * INNER))
    found = split(tensor, {"model_type": "gpt_oss", "hidden_size": HIDDEN})
    assert [each.name for each in found] == [f"{UP}.{number}.weight" for number in range(EXPERTS)]
    assert {each.shape for each in found} == {(HIDDEN, 2 * INNER)}
    assert {each.transposed for each in found} == {True}
    assert [each.start for each in found] == [100 + number * 2 * HIDDEN * 2 * INNER for number in range(3)]
    assert found[-1].end == tensor.end
    assert all(each.nbytes == 2 * each.parameters for each in found)


def test_a_stack_without_experts_has_none():
    assert expert_matrices(stack(UP, (0, HIDDEN, INNER)), UP) == []


@pytest.mark.parametrize(
    ("tensor", "config"),
    [
        (stack(UP, (3, 32, 80)), {"hidden_size": 32}),
        (stack(UP, (3, 32, 80)), {"model_type": "unheard_of", "hidden_size": 32}),
        (stack(UP, (3, 80, 32)), {"model_type": "gpt_oss", "hidden_size": 32}),
        (stack(UP, (3, 32, 80)), {"model_type": "mixtral", "hidden_size": 32}),
        (stack(UP, (3, 32, 80)), {"model_type": "gpt_oss"}),
        (stack("model.conv.weight", (3, 32, 80)), {"model_type": "gpt_oss", "hidden_size": 32}),
        (stack(UP, (3, 32, 80), dtype="I16"), {"model_type": "gpt_oss", "hidden_size": 32}),
    ],
)
def test_what_is_not_known_stays_one_tensor(tensor, config):
    assert split(tensor, config) == [tensor]


def test_the_type_may_be_that_of_the_text_model():
    config = {"model_type": "llava", "text_config": {"model_type": "llama4_text", "hidden_size": HIDDEN}}
    assert len(split(stack(DOWN, (EXPERTS, INNER, HIDDEN)), config)) == EXPERTS


CLASSES = {
    "llama4_text": ("llama4", "Llama4Text", {"num_local_experts": 3}),
    "gpt_oss": ("gpt_oss", "GptOss", {"num_local_experts": 3}),
    "mixtral": ("mixtral", "Mixtral", {"num_local_experts": 3}),
    "qwen2_moe": ("qwen2_moe", "Qwen2Moe", {"num_experts": 3}),
    "qwen3_moe": ("qwen3_moe", "Qwen3Moe", {"num_experts": 3}),
    "qwen3_5_moe_text": ("qwen3_5_moe", "Qwen3_5MoeText", {"num_experts": 3}),
    "deepseek_v3": ("deepseek_v3", "DeepseekV3", {"n_routed_experts": 3}),
}
EXPERTS_CLASSES = {
    *("Llama4TextExperts", "GptOssExperts", "MixtralExperts", "Qwen2MoeExperts", "Qwen3MoeExperts"),
    *("Qwen3_5MoeExperts", "DeepseekV3NaiveMoe", "DeepseekV3Experts"),
}
# The type of a model with a part of the type above.
WHOLES = {"llama4": "llama4_text", "qwen3_5_moe": "qwen3_5_moe_text"}


@pytest.mark.parametrize("kind", CLASSES)
def test_the_orientation_is_that_of_the_class(kind):
    import torch
    import transformers

    package, stem, sizes = CLASSES[kind]
    config = getattr(transformers, f"{stem}Config")(
        hidden_size=HIDDEN, intermediate_size=INNER, moe_intermediate_size=INNER, **sizes
    )
    module = import_module(f"transformers.models.{package}.modeling_{package}")
    (experts,) = (value for name, value in vars(module).items() if name in EXPERTS_CLASSES)
    with torch.device("meta"):
        made = experts(config)
    transposed = TRANSPOSED[kind]
    up, down = (
        ((HIDDEN, 2 * INNER), (INNER, HIDDEN)) if transposed else ((2 * INNER, HIDDEN), (HIDDEN, INNER))
    )
    assert tuple(made.gate_up_proj.shape) == (3, *up)
    assert tuple(made.down_proj.shape) == (3, *down)
    for name, shape in ((UP, up), (DOWN, down)):
        found = split(stack(name, (3, *shape)), {"model_type": kind, "hidden_size": HIDDEN})
        assert {each.transposed for each in found} == {transposed}


def test_the_files_of_qwen3_vl_are_turned_when_they_are_read():
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import Transpose

    rules = [
        rule for rule in get_checkpoint_conversion_mapping("qwen3_vl_moe") if hasattr(rule, "operations")
    ]
    turned = {rule.source_patterns[0]: rule.operations for rule in rules}
    for last in ("gate_up_proj", "down_proj"):
        (operation,) = next(own for pattern, own in turned.items() if last in pattern)
        assert isinstance(operation, Transpose)
    # The class holds [outputs, inputs].
    assert TRANSPOSED["qwen3_vl_moe"]
    assert set(TRANSPOSED) == {*CLASSES, *WHOLES, "qwen3_vl_moe"}
    assert all(TRANSPOSED[whole] == TRANSPOSED[part] for whole, part in WHOLES.items())
