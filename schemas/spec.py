"""The compression spec: what a client asks for, checked once."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from schemas.base import Input, is_none
from schemas.format.index import CHECKPOINT_ID
from schemas.planning.codecs import CODEC_NAMES
from schemas.planning.forms import FORMS, Selector, Storage


def _budget_is_global(value: object) -> None:
    if value is None:
        return
    raise PydanticCustomError(
        "for_the_whole",
        "a budget is shared by all layers: give it as the spec's own rank; here a weight says how much these "
        "layers count",
    )


NotAllowedHere = SkipJsonSchema[
    Annotated[None, BeforeValidator(_budget_is_global), Field(exclude_if=is_none)]
]


class RankRule(Input):
    """Exactly one rule that gives a layer its rank."""

    offered: ClassVar[tuple[str, ...]] = ("ratio", "energy", "error")

    ratio: float | None = Field(
        default=None,
        exclude_if=is_none,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="The largest rank whose factors hold at most this share of the weight's parameters.",
        examples=[0.5],
    )
    energy: float | None = Field(
        default=None,
        exclude_if=is_none,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="The least rank that keeps this share of the squared singular values.",
        examples=[0.95],
    )
    error: float | None = Field(
        default=None,
        exclude_if=is_none,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="The least rank whose relative Frobenius error is at most this.",
        examples=[0.1],
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        count = sum(getattr(self, name) is not None for name in self.offered)
        if count != 1:
            names = f"{', '.join(self.offered[:-1])} and {self.offered[-1]}"
            raise PydanticCustomError(
                "one_rule", "give exactly one of {names}; {count} are given", {"names": names, "count": count}
            )
        return self


class LayerRule(RankRule):
    """Exactly one rule that gives these layers their ranks."""

    budget: NotAllowedHere = None
    budget_bytes: NotAllowedHere = None


class SpecRule(RankRule):
    """Exactly one rule that gives all layers their ranks."""

    offered: ClassVar = (*RankRule.offered, "budget", "budget_bytes")

    budget: float | None = Field(
        default=None,
        exclude_if=is_none,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="All selected layers together keep at most this share of their parameters, spent where "
        "it lowers the error most.",
        examples=[0.5],
    )
    budget_bytes: int | None = Field(
        default=None,
        exclude_if=is_none,
        strict=True,
        ge=1,
        le=2**63 - 1,
        description="All output files together, headers and index included, are at most this many bytes, "
        "spent likewise.",
        examples=[50_000_000],
    )

    @property
    def is_budget(self) -> bool:
        """Whether the layers share what there is to spend."""
        return self.budget is not None or self.budget_bytes is not None


def _rank_tag(value: object) -> str:
    return "rule" if isinstance(value, dict | RankRule) else "integer"


Integer = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1, examples=[64]), Tag("integer")]
Rank = Annotated[Integer | Annotated[SpecRule, Tag("rule")], Discriminator(_rank_tag)]
LayerRank = Annotated[Integer | Annotated[LayerRule, Tag("rule")], Discriminator(_rank_tag)]

Layout = Literal["factored", "dense"]
Objective = Literal["relative", "absolute"]


@dataclass(frozen=True, eq=False)
class OneOf:
    """Annotates a string that must be one of the names in a table, which may still grow."""

    names: Collection[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(schema) | {"enum": list(self.names)}

    def _check(self, name: str) -> str:
        if name in self.names:
            return name
        *first, last = (repr(known) for known in self.names)
        raise PydanticCustomError(
            "literal_error", "Input should be {names}", {"names": f"{', '.join(first)} or {last}"}
        )


Method = Annotated[str, OneOf(FORMS)]
FactorDtype = Annotated[str, OneOf(CODEC_NAMES)]

DEFAULT_INCLUDE = ("*",)
DEFAULT_EXCLUDE = ("*embed*", "*wte*", "*wpe*", "*norm*")


def _empty(value: tuple[object, ...]) -> bool:
    return not value


def _is_one(value: object) -> bool:
    return value == 1


def _is_relative(value: object) -> bool:
    return value == "relative"


Multiple = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
Pattern = Annotated[str, Field(min_length=1, max_length=1024)]


class CurOptions(Input):
    """How CUR's factors are stored."""

    storage: Storage = Field(
        default="three",
        description="`three`: C, U and R. `two`: C and U·R, k² parameters fewer.",
        examples=["two"],
    )


class Override(Input):
    """What differs for the layers that a pattern matches; the first matching override wins."""

    match: Pattern = Field(
        description="A shell pattern on the module name, that is the tensor's name without `.weight`.",
        examples=["*.attention.*"],
    )
    rank: LayerRank | None = Field(
        default=None,
        exclude_if=is_none,
        description="The rank or rank rule for these layers; what they cost is part of a budget.",
        examples=[64],
    )
    method: Method | None = Field(
        default=None, exclude_if=is_none, description="The method for these layers.", examples=["cx"]
    )
    selector: Selector | None = Field(
        default=None,
        exclude_if=is_none,
        description="The column and row selector for these layers.",
        examples=["cpqr"],
    )
    cur: CurOptions | None = Field(
        default=None,
        exclude_if=is_none,
        description="CUR storage for these layers.",
        examples=[{"storage": "two"}],
    )
    align: Multiple | None = Field(
        default=None, exclude_if=is_none, description="What the ranks are multiples of here.", examples=[16]
    )
    min_rank: Multiple | None = Field(
        default=None, exclude_if=is_none, description="The least rank here.", examples=[8]
    )
    weight: float | None = Field(
        default=None,
        exclude_if=is_none,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="How much the squared errors of these layers count under a budget; 1 if not given.",
        examples=[4.0],
    )


class CompressionSpec(Input):
    """What is to be done with a checkpoint."""

    method: Method = Field(
        default="svd",
        description="`svd`: two factors, the least error. `cur`: verbatim columns and rows. "
        "`cx`: verbatim columns and a fit.",
        examples=["svd"],
    )
    rank: Rank = Field(
        description="An integer, or exactly one of `ratio`, `energy`, `error`, `budget` and `budget_bytes`.",
        examples=[{"ratio": 0.5}, 64],
    )
    objective: Objective = Field(
        default="relative",
        exclude_if=_is_relative,
        description="What a budget makes least: the sum of the layers' squared errors, each `relative` to "
        "its weight's squared norm, or `absolute`.",
        examples=["relative"],
    )
    align: Multiple = Field(
        default=1,
        exclude_if=_is_one,
        description="Ranks are multiples of this: a ratio is rounded down to one, an integer, an energy and "
        "an error up.",
        examples=[8],
    )
    min_rank: Multiple = Field(
        default=1,
        exclude_if=_is_one,
        description="No layer is factored at a lower rank; where the rule allows none, it stays dense.",
        examples=[8],
    )
    include: tuple[Pattern, ...] = Field(
        default=DEFAULT_INCLUDE,
        max_length=10_000,
        description="Module names that may be factored.",
        examples=[["*"]],
    )
    exclude: tuple[Pattern, ...] = Field(
        default=DEFAULT_EXCLUDE,
        max_length=10_000,
        description="Module names that stay as they are; replaces the default list.",
        examples=[["*embed*", "lm_head"]],
    )
    overrides: tuple[Override, ...] = Field(
        default=(),
        max_length=10_000,
        description="Exceptions by pattern.",
        examples=[[{"match": "*.attention.*", "rank": 64}]],
    )
    selector: Selector = Field(
        default="qdeim", description="How `cur` and `cx` choose columns and rows.", examples=["qdeim"]
    )
    cur: CurOptions = Field(
        default=CurOptions(), description="How CUR's factors are stored.", examples=[{"storage": "three"}]
    )
    layout: Layout = Field(
        default="factored",
        description="`factored`: factors under new names. `dense`: multiplied out, names as before.",
        examples=["factored"],
    )
    dtype: FactorDtype = Field(
        default="keep", description="The storage dtype of what is factored.", examples=["keep"]
    )
    seed: int = Field(
        default=0,
        strict=True,
        ge=0,
        le=2**63 - 1,
        description="Seeds whatever is sampled: the same input and spec give the same bytes.",
        examples=[0],
    )
    calibration: Annotated[str, Field(pattern=CHECKPOINT_ID.pattern)] | None = Field(
        default=None,
        exclude_if=is_none,
        description="The id of a stored checkpoint that holds `<module>.gram` [n, n], the sum of x·xᵀ over "
        "the inputs x of a layer: the error of those layers' outputs is then minimised.",
        examples=["my-grams"],
    )
    transposed: tuple[Pattern, ...] = Field(
        default=(),
        exclude_if=_empty,
        max_length=10_000,
        description="Module names whose weight is stored as [inputs, outputs], as GPT-2's Conv1D stores it.",
        examples=[["transformer.h.*"]],
    )

    @field_validator("layout")
    @classmethod
    def _has_bytes_to_save(cls, layout: Layout, given: ValidationInfo) -> Layout:
        rank = given.data.get("rank")
        if layout == "dense" and isinstance(rank, SpecRule) and rank.budget_bytes is not None:
            raise PydanticCustomError(
                "dense_bytes",
                "a dense layout saves no bytes; give budget instead of budget_bytes, or leave this out",
            )
        return layout

    def canonical(self) -> str:
        """Return the spec as one JSON string that is equal for equal specs."""
        return json.dumps(self.document(), sort_keys=True, separators=(",", ":"))

    def document(self) -> dict[str, Any]:
        """Return the spec as the report shows it: defaults filled in, what is not given left out."""
        return self.model_dump(mode="json")
