"""The compression spec: method, ranks, layers and options of a job, validated once."""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from schemas.base import Input, fault_at, is_none
from schemas.format.names import CHECKPOINT_ID
from schemas.format.tensor import FLOAT_DTYPES
from schemas.method import Conv, FactorDtype, Method, check_methods, methods_of, need_rank
from schemas.pair import Pairs, check_pairs
from schemas.planning.codecs import CODECS
from schemas.planning.forms import Selector, Storage
from schemas.planning.patterns import LAST
from schemas.rank_rule import LayerRank, Rank, RankRule, SpecRule

Layout = Literal["factored", "dense", "adapter"]
Group = Literal[32, 64, 128]
DEFAULT_GROUP: Group = 64
Objective = Literal["relative", "absolute", "loss"]


DEFAULT_INCLUDE = ("*",)
# These leave out no weight with a bias, since an embedding has none.
EMBEDDINGS = tuple(
    LAST + pattern
    for pattern in (
        *("embed*", "*_embed", "*embedding*", "emb", "*_emb", "wte", "wpe", "shared", "token_type*"),
        *("relative_attention_bias", "lookup*", "codebook*"),
    )
)
# A router may be a module with Linears of its own, as in Switch Transformers and DBRX.
ROUTERS = tuple(LAST + pattern for pattern in ("*router*", "*router*.*", "gate"))
DEFAULT_EXCLUDE = (*EMBEDDINGS, *(LAST + pattern for pattern in ("*norm*", "ln_*")), *ROUTERS)


def _empty(value: tuple[object, ...]) -> bool:
    return not value


def _is_one(value: object) -> bool:
    return value == 1


def _is_default_group(value: object) -> bool:
    return value == DEFAULT_GROUP


def _is_correct(value: object) -> bool:
    return value == "correct"


Multiple = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
Pattern = Annotated[str, Field(min_length=1, max_length=1024)]
CheckpointId = Annotated[str, Field(pattern=CHECKPOINT_ID.pattern)]
# The fields of a spec that name other stored checkpoints.
REFERENCES = ("calibration", "base")


class CurOptions(Input):
    """Options of the method `cur`."""

    storage: Storage = Field(
        default="three",
        description="`three`: store C, U and R. `two`: store C and U·R, which saves k² parameters.",
        examples=["two"],
    )


class ExpertStack(Input):
    """How tensors with three sides, which hold a matrix for each expert, are stored."""

    match: Pattern = Field(
        description="Shell pattern for the tensors' names, without `.weight`.",
        examples=["*.experts.gate_up_proj"],
    )
    transposed: bool = Field(
        description="Whether each matrix is stored as [inputs, outputs].", examples=[True]
    )


class Override(Input):
    """Options for the layers that match a pattern; the first matching override wins."""

    match: Pattern = Field(
        description="Shell pattern for module names (the tensor's name without `.weight`).",
        examples=["*.attention.*"],
    )
    rank: LayerRank | None = Field(
        default=None,
        exclude_if=is_none,
        description="Rank or rank rule for these layers; under a budget, their cost is part of it.",
        examples=[64],
    )
    method: Method | None = Field(
        default=None, exclude_if=is_none, description="Method for these layers.", examples=["cx"]
    )
    conv: Conv | None = Field(
        default=None,
        exclude_if=is_none,
        description="Form of these layers where they are convolutions, also of kernels with one input.",
        examples=["channel"],
    )
    selector: Selector | None = Field(
        default=None,
        exclude_if=is_none,
        description="Column and row selector for these layers.",
        examples=["cpqr"],
    )
    cur: CurOptions | None = Field(
        default=None,
        exclude_if=is_none,
        description="Options of the method `cur` for these layers.",
        examples=[{"storage": "two"}],
    )
    align: Multiple | None = Field(
        default=None,
        exclude_if=is_none,
        description="Ranks of these layers are multiples of this.",
        examples=[16],
    )
    min_rank: Multiple | None = Field(
        default=None, exclude_if=is_none, description="Smallest rank for these layers.", examples=[8]
    )
    weight: float | None = Field(
        default=None,
        exclude_if=is_none,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="Factor on the squared errors of these layers under a budget; 1 if not given.",
        examples=[4.0],
    )


class CompressionSpec(Input):
    """How to compress a checkpoint."""

    method: Method = Field(
        default="svd",
        description="`svd`: two factors with the smallest error. `pivot`: their product as some of its rows "
        "and coefficients, in fewer parameters. `cur`: columns and rows of the weight. `cx`: columns of the "
        "weight and a least-squares fit. `int8`, `int4`, `int3`: the weight rounded to integers; with "
        "`+svd`, two factors correct what rounding loses. From a list, a budget takes the best for "
        "each layer.",
        examples=["svd", ["svd", "int8", "int4+svd"]],
    )
    conv: Conv | None = Field(
        default=None,
        exclude_if=is_none,
        description="How convolutions are factored, which otherwise stay as they are. "
        "`channel`: few filters of the whole kernel, and a mix of them. `spatial`: a column of the kernel, "
        "then a row. `tucker2`: fewer channels before and after a small kernel. `cp`: one filter for each "
        "channel in between. `separable`: a few filters for each input, and a mix of them.",
        examples=["channel"],
    )
    rank: Rank | None = Field(
        default=None,
        validate_default=True,
        exclude_if=is_none,
        description="An integer, or exactly one of `ratio`, `energy`, `error`, `auto`, `budget` and "
        "`budget_bytes`. Methods without factors, such as `int8`, need none.",
        examples=[{"ratio": 0.5}, 64],
    )
    objective: Objective | None = Field(
        default=None,
        exclude_if=is_none,
        description="What a budget minimizes: the sum of the layers' squared errors, `relative` to each "
        "weight's squared norm or `absolute`, or the predicted `loss`. Not given: `loss` if layers with "
        "at least half of the parameters have both Gram matrices, else `relative`.",
        examples=["relative"],
    )
    align: Multiple = Field(
        default=1,
        exclude_if=_is_one,
        description="Ranks are multiples of this. Ranks from a ratio are rounded down, all others up.",
        examples=[8],
    )
    min_rank: Multiple = Field(
        default=1,
        exclude_if=_is_one,
        description="Smallest rank of a layer; a layer whose rule does not allow it stays dense.",
        examples=[8],
    )
    include: tuple[Pattern, ...] = Field(
        default=DEFAULT_INCLUDE,
        max_length=10_000,
        description="Patterns of the modules that may be factored.",
        examples=[["*"]],
    )
    exclude: tuple[Pattern, ...] = Field(
        default=DEFAULT_EXCLUDE,
        max_length=10_000,
        description="Patterns of the modules that are not factored; replaces the default list. A pattern "
        "after `last:` is matched with the last part of the name, or as many as it has, case aside.",
        examples=[["last:embed*", "lm_head"]],
    )
    overrides: tuple[Override, ...] = Field(
        default=(),
        max_length=10_000,
        description="Options for layers that match a pattern.",
        examples=[[{"match": "*.attention.*", "rank": 64}]],
    )
    selector: Selector = Field(
        default="qdeim", description="How `cur` and `cx` choose columns and rows.", examples=["qdeim"]
    )
    cur: CurOptions = Field(
        default=CurOptions(), description="Options of the method `cur`.", examples=[{"storage": "three"}]
    )
    layout: Layout = Field(
        default="factored",
        description="`factored`: store the factors under new names. `dense`: store their product under the "
        "name of the weight. `adapter`: store the difference to `base` as a LoRA adapter for PEFT; without a "
        "base, the checkpoint is a LoRA adapter, which gets lower ranks.",
        examples=["factored"],
    )
    dtype: FactorDtype = Field(
        default="keep", description="Storage dtype of factored weights.", examples=["keep"]
    )
    group: Group = Field(
        default=DEFAULT_GROUP,
        exclude_if=_is_default_group,
        description="How many neighbours in a row share a scale, in `int4` and `int3`.",
        examples=[64],
    )
    seed: int = Field(
        default=0,
        strict=True,
        ge=0,
        le=2**63 - 1,
        description="Seed of all random numbers: the same input and spec give the same bytes.",
        examples=[0],
    )
    calibration: CheckpointId | None = Field(
        default=None,
        exclude_if=is_none,
        description="Id of a stored checkpoint with tensors `<module>.gram` [n, n], the sum of x·xᵀ over the "
        "inputs x of a layer. The error of those layers' outputs is then minimized.",
        examples=["my-grams"],
    )
    bias: Literal["correct", "keep"] = Field(
        default="correct",
        exclude_if=_is_correct,
        description="`correct`: where the calibration has the mean of a layer's inputs, its bias makes up "
        "for the mean error of the outputs. `keep`: biases stay as they are.",
        examples=["correct"],
    )
    base: CheckpointId | None = Field(
        default=None,
        exclude_if=is_none,
        description="Id of the stored checkpoint that this one was fine-tuned from, with the same names and "
        "shapes. The difference to it is then factored instead of the weights; `layout` must be `adapter` or "
        "`dense`.",
        examples=["my-base-model"],
    )
    pairs: Pairs | None = Field(
        default=None,
        exclude_if=is_none,
        description="`neurons`: of each MLP found by well-known names, the ratio of `rank` is the share of "
        "neurons that stays; their rows of the weights before are kept, and the weight behind is fitted anew "
        "by the calibration. Or the MLPs by the names of their modules.",
        examples=["neurons"],
    )
    transposed: tuple[Pattern, ...] = Field(
        default=(),
        exclude_if=_empty,
        max_length=10_000,
        description="Patterns of the modules whose weight is stored as [inputs, outputs], as in GPT-2's "
        "Conv1D.",
        examples=[["transformer.h.*"]],
    )
    experts: tuple[ExpertStack, ...] = Field(
        default=(),
        exclude_if=_empty,
        max_length=10_000,
        description="Stacks of experts of which config.json does not tell how they are stored; the first "
        "match wins.",
        examples=[[{"match": "*.experts.gate_up_proj", "transposed": True}]],
    )

    @field_validator("layout")
    @classmethod
    def _check_budget_bytes(cls, layout: Layout, info: ValidationInfo) -> Layout:
        rank = info.data.get("rank")
        if layout == "dense" and isinstance(rank, SpecRule) and rank.budget_bytes is not None:
            raise PydanticCustomError(
                "dense_bytes",
                "a dense layout saves no bytes; give budget instead of budget_bytes, or leave out layout",
            )
        return layout

    @field_validator("rank")
    @classmethod
    def _check_rank(cls, rank: int | SpecRule | None, info: ValidationInfo) -> int | SpecRule | None:
        methods = methods_of(info.data.get("method", ()))
        check_methods(info.data.get("method", ()), rank)
        if rank is None and (need_rank(methods) or info.data.get("conv") is not None):
            raise PydanticCustomError(
                "rank_missing", 'required: give a whole number such as 64, or a rule such as {"ratio": 0.5}'
            )
        return rank

    @field_validator("overrides")
    @classmethod
    def _check_overrides(cls, overrides: tuple[Override, ...], info: ValidationInfo) -> tuple[Override, ...]:
        rank = info.data.get("rank")
        for number, override in enumerate(overrides):
            at = ("overrides", number)
            methods = methods_of(override.method or info.data.get("method", ()))
            if override.method is not None and "rank" in info.data:
                own = (*at, "method")
                check_methods(override.method, override.rank or rank, at=own, otherwise=own)
            if override.rank is not None and len(methods) > 1:
                raise fault_at(
                    (*at, "rank"),
                    "list_without_budget",
                    "{match} has a rank of its own: give it one method too",
                    match=repr(override.match),
                )
            needs = need_rank(methods) or override.conv is not None
            if rank is None and override.rank is None and "rank" in info.data and needs:
                raise fault_at(
                    (*at, "rank"),
                    "rank_missing",
                    "give a rank for {match}: the method {method} needs one",
                    match=repr(override.match),
                    method=override.conv or " or ".join(methods),
                )
        return overrides

    @field_validator("layout")
    @classmethod
    def _check_conv(cls, layout: Layout, info: ValidationInfo) -> Layout:
        named = [info.data.get("conv"), *(each.conv for each in info.data.get("overrides", ()))]
        if layout == "adapter" and any(named):
            raise PydanticCustomError(
                "adapter_conv", "an adapter holds no convolutions; leave out conv, or give another layout"
            )
        return layout

    @field_validator("pairs")
    @classmethod
    def _check_pairs(cls, pairs: Pairs | None, info: ValidationInfo) -> Pairs | None:
        rank = info.data.get("rank")
        if pairs is not None:
            check_pairs(pairs, info.data, has_ratio=isinstance(rank, RankRule) and rank.ratio is not None)
        return pairs

    @field_validator("dtype")
    @classmethod
    def _check_dtype(cls, dtype: str, info: ValidationInfo) -> str:
        if (
            info.data.get("layout") == "adapter"
            and dtype in CODECS
            and CODECS[dtype].dtype not in FLOAT_DTYPES
        ):
            raise PydanticCustomError(
                "adapter_dtype",
                "an adapter holds floats, which PEFT reads: give a floating dtype, or leave out dtype",
            )
        return dtype

    @property
    def references(self) -> dict[str, str]:
        """The ids of the other checkpoints that the spec names, by its fields."""
        return {field: name for field in REFERENCES if (name := getattr(self, field)) is not None}

    def canonical(self) -> str:
        """Return the spec as one JSON string that is equal for equal specs."""
        return json.dumps(self.document(), sort_keys=True, separators=(",", ":"))

    def document(self) -> dict[str, Any]:
        """Return the spec as JSON types: with defaults, and without optional fields that are not given."""
        return self.model_dump(mode="json")
