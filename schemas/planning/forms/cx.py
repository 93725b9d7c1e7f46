"""The form `cx`: columns of the weight, and the coefficients that fit the others best."""

from dataclasses import dataclass
from typing import ClassVar, Self

from schemas.planning.forms.base import Chain, FormOptions, register


@register
@dataclass(frozen=True)
class Cx(Chain):
    """W ≈ C·X: `0.weight` is X [k, n], `1.weight` is C [m, k]."""

    name: ClassVar[str] = "cx"
    known_by_spectrum: ClassVar[bool] = False

    @classmethod
    def of(cls, options: FormOptions) -> Self:
        return cls(options.selector)

    @property
    def num_factors(self) -> int:
        return 2
