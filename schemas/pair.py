"""The field `pairs` of a spec: which MLPs keep a share of their neurons."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from schemas.base import Input, is_none

# Each `*` costs a search of the rest of every name.
MOST_WILDCARDS = 8
Name = Annotated[str, Field(min_length=1, max_length=1024)]


class Pair(Input):
    """The weights before the neurons of MLPs, and the weight behind them."""

    up: Name = Field(
        description="Module before the neurons; a `*` stands for any text, with dots.",
        examples=["model.layers.*.mlp.up_proj"],
    )
    gate: Name | None = Field(
        default=None,
        exclude_if=is_none,
        description="The other module before the neurons, if there is one; each `*` is the text that it "
        "stands for in `up`.",
        examples=["model.layers.*.mlp.gate_proj"],
    )
    down: Name = Field(
        description="Module behind the neurons, likewise.", examples=["model.layers.*.mlp.down_proj"]
    )
    share: float | None = Field(
        default=None,
        exclude_if=is_none,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the neurons that stays; the ratio of `rank` if not given.",
        examples=[0.7],
    )

    @model_validator(mode="after")
    def _check_wildcards(self) -> Self:
        counts = {name.count("*") for name in (self.up, self.gate, self.down) if name is not None}
        if len(counts) > 1 or max(counts) > MOST_WILDCARDS:
            raise PydanticCustomError(
                "pair_wildcards",
                "give up, gate and down equally many *, at most {most}: each stands for the same text in all",
                {"most": MOST_WILDCARDS},
            )
        return self


def _tag(value: object) -> str:
    return "named pairs" if isinstance(value, list | tuple) else "known pairs"


KnownPairs = Annotated[Literal["neurons"], Tag("known pairs")]
NamedPairs = Annotated[tuple[Pair, ...], Field(min_length=1, max_length=10_000), Tag("named pairs")]
Pairs = Annotated[KnownPairs | NamedPairs, Discriminator(_tag)]


def check_pairs(
    pairs: Literal["neurons"] | tuple[Pair, ...], given: dict[str, Any], *, has_ratio: bool
) -> None:
    """Raise a validation error for pairs that the fields `given` before them do not allow."""
    if given.get("layout") == "adapter" or given.get("base") is not None:
        raise PydanticCustomError(
            "pairs_of_difference",
            "an adapter and a difference to a base keep the shapes of all weights: leave out pairs or base",
        )
    lacks_share = pairs == "neurons" or any(pair.share is None for pair in pairs)
    if lacks_share and not has_ratio and "rank" in given:
        raise PydanticCustomError(
            "pairs_need_a_share",
            'give rank as {"ratio": …}, which is then the share of neurons, or a share for each pair',
        )
