"""The form `svd`: the truncated singular value decomposition, which has the smallest error at its rank."""

from dataclasses import dataclass
from typing import ClassVar, Self

from schemas.planning.forms.base import Chain, FormOptions, register


@register
@dataclass(frozen=True)
class Svd(Chain):
    """W ≈ L·R: `0.weight` is R [k, n], `1.weight` is L [m, k]."""

    name: ClassVar[str] = "svd"

    @classmethod
    def of(cls, options: FormOptions) -> Self:  # noqa: ARG003 - it has no options
        return cls()

    @property
    def num_factors(self) -> int:
        return 2
