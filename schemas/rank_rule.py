"""The ranks that a spec may give: a number, a rule for each layer, or a budget that all layers share."""

from typing import Annotated, ClassVar, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from schemas.base import Input, is_none
from schemas.spectrum_rank import AutoRule


def _budget_is_global(value: object) -> None:
    if value is None:
        return
    raise PydanticCustomError(
        "budget_is_global",
        "a budget is shared by all layers: give it as the rank of the spec; in an override, weight says how "
        "much these layers count",
    )


NotAllowedHere = SkipJsonSchema[
    Annotated[None, BeforeValidator(_budget_is_global), Field(exclude_if=is_none)]
]


class RankRule(Input):
    """A rule for the rank of a layer; exactly one field is given."""

    rule_names: ClassVar[tuple[str, ...]] = ("ratio", "energy", "error", "auto")

    ratio: float | None = Field(
        default=None,
        exclude_if=is_none,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Largest rank whose factors have at most this share of the weight's parameters.",
        examples=[0.5],
    )
    energy: float | None = Field(
        default=None,
        exclude_if=is_none,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Smallest rank that keeps this share of the sum of squared singular values.",
        examples=[0.95],
    )
    error: float | None = Field(
        default=None,
        exclude_if=is_none,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="Smallest rank with a relative Frobenius error of at most this.",
        examples=[0.1],
    )
    auto: AutoRule | None = Field(
        default=None,
        exclude_if=is_none,
        description="The number of singular values that stand out of noise, by the `hard_threshold` of "
        "Gavish and Donoho or by `vbmf`, variational Bayesian matrix factorization.",
        examples=["vbmf"],
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        count = sum(getattr(self, name) is not None for name in self.rule_names)
        if count != 1:
            names = f"{', '.join(self.rule_names[:-1])} and {self.rule_names[-1]}"
            raise PydanticCustomError(
                "one_rule", "give exactly one of {names}; {count} given", {"names": names, "count": count}
            )
        return self


class LayerRule(RankRule):
    """A rule for the ranks of the layers of an override; exactly one field is given."""

    budget: NotAllowedHere = None
    budget_bytes: NotAllowedHere = None


class SpecRule(RankRule):
    """A rule for the ranks of all layers; exactly one field is given."""

    rule_names: ClassVar = (*RankRule.rule_names, "budget", "budget_bytes")

    budget: float | None = Field(
        default=None,
        exclude_if=is_none,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="All selected layers together keep at most this share of their parameters, distributed "
        "so that the total error is smallest.",
        examples=[0.5],
    )
    budget_bytes: int | None = Field(
        default=None,
        exclude_if=is_none,
        strict=True,
        ge=1,
        le=2**63 - 1,
        description="All weight files of the output, headers and index included, have at most this many "
        "bytes, distributed likewise. Companions are not counted.",
        examples=[50_000_000],
    )


def _rank_tag(value: object) -> str:
    return "rule" if isinstance(value, dict | RankRule) else "integer"


Integer = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1, examples=[64]), Tag("integer")]
Rank = Annotated[Integer | Annotated[SpecRule, Tag("rule")], Discriminator(_rank_tag)]
LayerRank = Annotated[Integer | Annotated[LayerRule, Tag("rule")], Discriminator(_rank_tag)]


def budget_of(rank: int | RankRule | None) -> SpecRule | None:
    """Return the rule if it is a budget that the layers share, else None."""
    if isinstance(rank, SpecRule) and (rank.budget is not None or rank.budget_bytes is not None):
        return rank
    return None
