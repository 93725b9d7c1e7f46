"""Stacks of experts: one tensor with three sides that holds a matrix for each expert, seen as these matrices.

Gate and up stay one matrix in the order of the file, so it does not matter whether they are interleaved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from schemas.format.tensor import FLOAT_DTYPES, WEIGHT, TensorInfo

GATE_UP, DOWN = "gate_up_proj", "down_proj"
ENDINGS = tuple(f".experts.{last}" for last in (GATE_UP, DOWN))
# Whether the files of a model type hold [expert, inputs, outputs], as a test compares with transformers.
TRANSPOSED: Mapping[str, bool] = MappingProxyType(
    {
        "llama4": True,
        "llama4_text": True,
        "gpt_oss": True,
        "qwen3_vl_moe": True,
        "mixtral": False,
        "qwen2_moe": False,
        "qwen3_moe": False,
        "qwen3_5_moe": False,
        "qwen3_5_moe_text": False,
        "deepseek_v3": False,
    }
)


@dataclass(frozen=True, slots=True)
class Expert:
    """The stack that a matrix is a part of: how many experts it has, and how the names of its tensors end."""

    experts: int
    endings: tuple[str, ...] = ("",)

    def stacks(self, module: str) -> list[str]:
        """Return the names of the tensors that hold the matrix of a module, which its number names."""
        return [stem_of(module) + ending for ending in self.endings]


def stem_of(module: str) -> str:
    """Return the name of a stack, by that of the module of one of its matrices."""
    return module.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class ExpertMatrix(TensorInfo):
    """The matrix of one expert: the bytes of a part of a stack, as a tensor of its own.

    `transposed` says that it is [inputs, outputs].
    """

    expert: Expert = Expert(0)
    transposed: bool = False

    @property
    def module(self) -> str:
        return self.name.removesuffix(WEIGHT)

    @property
    def stack(self) -> str:
        return self.expert.stacks(self.module)[0]


T = TypeVar("T")
# Returns whether a stack holds [expert, inputs, outputs]; None for any other tensor.
Orientation = Callable[[TensorInfo], bool | None]


def known_stacks(config: Mapping[str, Any]) -> Orientation | None:
    """Return how the stacks of a model are oriented, by its config.json; none where its type is not known."""
    text = config.get("text_config")
    parts = [config, *([text] if isinstance(text, dict) else [])]
    types = [part.get("model_type") for part in parts]
    transposed = next(
        (TRANSPOSED[name] for name in types if isinstance(name, str) and name in TRANSPOSED), None
    )
    width = next((part["hidden_size"] for part in reversed(parts) if "hidden_size" in part), None)

    if transposed is None:
        return None

    def orientation(tensor: TensorInfo) -> bool | None:
        if not tensor.name.endswith(ENDINGS):
            return None
        # The model's own width is the inputs of the first, and the outputs of the last.
        side = 1 if transposed == tensor.name.endswith(GATE_UP) else 2
        return transposed if tensor.shape[side] == width else None

    return orientation


def split_stacks(tensors: Sequence[T], orientations: Sequence[Orientation]) -> Sequence[T | ExpertMatrix]:
    """Put the matrices of each stack in its place; the first that tells its orientation counts."""
    found: list[T | ExpertMatrix] = []
    for tensor in tensors:
        transposed = None
        if isinstance(tensor, TensorInfo) and len(tensor.shape) == 3 and tensor.dtype in FLOAT_DTYPES:
            transposed = next((own for each in orientations if (own := each(tensor)) is not None), None)
        if transposed is None or not isinstance(tensor, TensorInfo):
            found.append(tensor)
        else:
            found += expert_matrices(tensor, tensor.name.removesuffix(WEIGHT), transposed=transposed)
    return found


def expert_matrices(tensor: TensorInfo, stem: str, *, transposed: bool = False) -> list[ExpertMatrix]:
    """Return the parts of a tensor of a stack, one for each expert, named by their number below the stem.

    What follows the stem in the tensor's name stands at the end; a stack that is one tensor has weights.
    """
    experts, *sides = tensor.shape
    step = tensor.nbytes // experts if experts else 0
    ending = tensor.name.removeprefix(stem)
    last = ending.lstrip("._") or WEIGHT[1:]
    expert = Expert(experts, (ending,))
    return [
        ExpertMatrix(
            f"{stem}.{number}.{last}",
            tensor.dtype,
            tuple(sides),
            tensor.start + number * step,
            tensor.start + (number + 1) * step,
            expert,
            transposed,
        )
        for number in range(experts)
    ]
