"""CUR: columns and rows of the weight itself, joined by a small core."""

from dataclasses import dataclass
from typing import ClassVar, Self

from schemas.planning.forms.base import Chain, FormOptions, Storage, register


@register
@dataclass(frozen=True)
class Cur(Chain):
    """W ≈ C·U·R: in `three` factors R [k, n], U [k, k] and C [m, k], in `two` U·R and C."""

    name: ClassVar[str] = "cur"
    storage: Storage = "three"

    @classmethod
    def of(cls, options: FormOptions) -> Self:
        return cls(options.selector, options.storage)

    @property
    def num_factors(self) -> int:
        return 3 if self.storage == "three" else 2
