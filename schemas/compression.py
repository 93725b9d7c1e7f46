"""The compression spec: what a client asks for, checked once."""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from schemas.base import Input
from schemas.index import CHECKPOINT_ID

Method = Literal["svd", "cur", "cx"]
Selector = Literal["qdeim", "cpqr", "leverage", "linear_time"]
Storage = Literal["three", "two"]
Layout = Literal["factored", "dense"]
FactorDtype = Literal["keep", "float32", "float16", "bfloat16"]

DEFAULT_INCLUDE = ("*",)
DEFAULT_EXCLUDE = ("*embed*", "*wte*", "*wpe*", "*norm*")


def _absent(value: object) -> bool:
    return value is None


def _empty(value: tuple[object, ...]) -> bool:
    return not value


def _not_available(value: object) -> None:
    if value is None:
        return
    raise PydanticCustomError(
        "not_available",
        "this version does not offer it yet; leave it out and give a rank, a ratio, an energy or an error",
    )


Unavailable = SkipJsonSchema[Annotated[None, BeforeValidator(_not_available), Field(exclude_if=_absent)]]
Pattern = Annotated[str, Field(min_length=1, max_length=1024)]


class RankRule(Input):
    """Exactly one rule that gives each layer its rank."""

    ratio: float | None = Field(
        default=None,
        exclude_if=_absent,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="The largest rank whose factors hold at most this share of the weight's parameters.",
        examples=[0.5],
    )
    energy: float | None = Field(
        default=None,
        exclude_if=_absent,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="The least rank that keeps this share of the squared singular values.",
        examples=[0.95],
    )
    error: float | None = Field(
        default=None,
        exclude_if=_absent,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="The least rank whose relative Frobenius error is at most this.",
        examples=[0.1],
    )
    budget: Unavailable = None
    budget_bytes: Unavailable = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "RankRule":
        given = [name for name in ("ratio", "energy", "error") if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "one_rule",
                "give exactly one of ratio, energy and error; {count} are given",
                {"count": len(given)},
            )
        return self


def _rank_tag(value: object) -> str:
    return "rule" if isinstance(value, dict | RankRule) else "integer"


Rank = Annotated[
    Annotated[int, Field(strict=True, ge=1, le=2**31 - 1, examples=[64]), Tag("integer")]
    | Annotated[RankRule, Tag("rule")],
    Discriminator(_rank_tag),
]


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
    rank: Rank | None = Field(
        default=None, exclude_if=_absent, description="The rank or rank rule for these layers.", examples=[64]
    )
    method: Method | None = Field(
        default=None, exclude_if=_absent, description="The method for these layers.", examples=["cx"]
    )
    selector: Selector | None = Field(
        default=None,
        exclude_if=_absent,
        description="The column and row selector for these layers.",
        examples=["cpqr"],
    )
    cur: CurOptions | None = Field(
        default=None,
        exclude_if=_absent,
        description="CUR storage for these layers.",
        examples=[{"storage": "two"}],
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
        description="An integer, or exactly one of `ratio`, `energy` and `error`.",
        examples=[{"ratio": 0.5}, 64],
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
        exclude_if=_absent,
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

    def canonical(self) -> str:
        """Return the spec as one JSON string that is equal for equal specs."""
        return json.dumps(self.document(), sort_keys=True, separators=(",", ":"))

    def document(self) -> dict[str, Any]:
        """Return the spec as the report shows it: defaults filled in, what is not given left out."""
        return self.model_dump(mode="json")
