"""The form `cur`: columns and rows of the weight, joined by a small core matrix."""

from dataclasses import dataclass
from typing import ClassVar, Self

from schemas.planning.forms.base import Chain, FormOptions, Storage, register


@register
@dataclass(frozen=True)
class Cur(Chain):
    """W ≈ C·U·R, stored as R [k, n], U [k, k] and C [m, k] (`three`), or as U·R and C (`two`)."""

    name: ClassVar[str] = "cur"
    known_by_spectrum: ClassVar[bool] = False
    storage: Storage = "three"

    @classmethod
    def of(cls, options: FormOptions) -> Self:
        return cls(options.selector, options.storage)

    @property
    def num_factors(self) -> int:
        return 3 if self.storage == "three" else 2
