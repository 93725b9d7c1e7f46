"""The rules that give layers their ranks: for one layer, or for all of them together."""

from typing import Annotated, ClassVar, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from schemas.base import Input, absent


def _for_the_whole(value: object) -> None:
    if value is None:
        return
    raise PydanticCustomError(
        "for_the_whole",
        "a budget is shared by all layers: give it as the spec's own rank; here a weight says how much these "
        "layers count",
    )


Elsewhere = SkipJsonSchema[Annotated[None, BeforeValidator(_for_the_whole), Field(exclude_if=absent)]]


class RankRule(Input):
    """Exactly one rule that gives a layer its rank."""

    offered: ClassVar[tuple[str, ...]] = ("ratio", "energy", "error")

    ratio: float | None = Field(
        default=None,
        exclude_if=absent,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="The largest rank whose factors hold at most this share of the weight's parameters.",
        examples=[0.5],
    )
    energy: float | None = Field(
        default=None,
        exclude_if=absent,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="The least rank that keeps this share of the squared singular values.",
        examples=[0.95],
    )
    error: float | None = Field(
        default=None,
        exclude_if=absent,
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

    budget: Elsewhere = None
    budget_bytes: Elsewhere = None


class SpecRule(RankRule):
    """Exactly one rule that gives all layers their ranks."""

    offered: ClassVar = (*RankRule.offered, "budget", "budget_bytes")

    budget: float | None = Field(
        default=None,
        exclude_if=absent,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="All selected layers together keep at most this share of their parameters, spent where "
        "it lowers the error most.",
        examples=[0.5],
    )
    budget_bytes: int | None = Field(
        default=None,
        exclude_if=absent,
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
