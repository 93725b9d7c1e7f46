"""The base class of forms for convolution kernels, and the table of them, which a spec's `conv` names."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import ClassVar, Self, TypeVar

from schemas.planning.forms.base import Form, FormOptions

# The numbers of sides that a kernel has in convolutions of one, two and three dimensions.
KERNEL_SIDES = range(1, 4)


@dataclass(frozen=True)
class KernelForm(Form):
    """Convolutions, one after the other, in place of one.

    In all methods, `shape` is [outputs, inputs, *kernel], also where the weight is stored transposed. Of a
    convolution in groups, it has the inputs of one group: the groups then share all factors but the last.
    """

    num_factors: ClassVar[int] = 2
    # Whether statistics of the unfolded inputs can say which errors matter.
    takes_statistics: ClassVar[bool] = False
    # Whether the factors of a transposed convolution are transposed convolutions.
    takes_transposed: ClassVar[bool] = True

    @classmethod
    def of(cls, options: FormOptions) -> Self:  # noqa: ARG003 - none has options
        return cls()

    @property
    def bias(self) -> str:
        return f"{self.num_factors - 1}.bias"

    def applies_to(self, shape: tuple[int, ...]) -> bool:
        return len(shape) - 2 in KERNEL_SIDES

    def takes_kernel(self, kernel: tuple[int, ...]) -> bool:  # noqa: ARG002 - most forms take any
        """Return whether the form is for kernels with these sides."""
        return True

    def largest_rank(self, shape: tuple[int, ...], parameters: int) -> int:
        ranks = range(1, self.full_rank(shape) + 1)
        return bisect_right(ranks, parameters, key=lambda rank: self.parameters(shape, rank))


CONV_FORMS: dict[str, type[KernelForm]] = {}
F = TypeVar("F", bound=type[KernelForm])


def register_kernel(form: F) -> F:
    """Register a form under its name, which then is a valid `conv` of a spec."""
    CONV_FORMS[form.name] = form
    return form


def kernel_form(conv: str, kernel: tuple[int, ...]) -> KernelForm:
    """Return the form for kernels with these sides.

    A kernel of one element is a matrix, and one of one side has nothing to separate: `channel` is what other
    forms would come to there.
    """
    is_matrix = math.prod(kernel) == 1
    is_line = conv == "spatial" and len(kernel) == 1
    name = "channel" if is_matrix or is_line else conv
    return CONV_FORMS[name].of(FormOptions())


def ones(kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sides of a kernel of one element."""
    return (1,) * len(kernel)
