"""Which tensors a spec selects, with which options, and by which rule it leaves out the others."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from schemas.format.tensor import FLOAT_DTYPES, WEIGHT
from schemas.method import methods_of
from schemas.planning.forms import FORMS, Form, FormOptions, kernel_form
from schemas.planning.forms.kernel import KERNEL_SIDES
from schemas.planning.layer import Tensor
from schemas.planning.modules import ATTENTION_WEIGHTS, Modules
from schemas.planning.patterns import Patterns
from schemas.planning.stored import turned
from schemas.spec import EMBEDDINGS, CompressionSpec, Override

EXCLUDE = "exclude "
NO_OVERRIDE = Override(match="*")
# Unless a bias tells, a weight of three dimensions is a convolution's if its kernel is at most this long.
LONGEST_KERNEL = 31
_is_recurrent = re.compile(r"weight_(ih|hh|hr)_l\d+(_reverse)?").fullmatch
_is_part_of_weight = re.compile(r"weight_(g|v|orig)|original\d?").fullmatch


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """The options of a spec for one layer.

    `number` is that of its override, or -1. `forms` are those that it may get.
    `transposed` says that the weight is stored as [inputs, outputs],
    `inferred` that a bias says so and not the spec.
    `by_override` says that an override names the form of a convolution.
    """

    number: int
    override: Override
    forms: tuple[Form, ...]
    transposed: bool
    inferred: bool
    by_override: bool = False


class Selection:
    """What a spec says of each tensor of a checkpoint."""

    def __init__(self, spec: CompressionSpec, modules: Modules) -> None:
        self._spec, self._modules = spec, modules
        self._include, self._exclude = Patterns(spec.include), Patterns(spec.exclude)
        # A weight with a bias is no embedding.
        self._for_biased = tuple(pattern for pattern in spec.exclude if pattern not in EMBEDDINGS)
        same = len(self._for_biased) == len(spec.exclude)
        self._exclude_biased = self._exclude if same else Patterns(self._for_biased)
        self._overrides = Patterns([override.match for override in spec.overrides])
        self._transposed = Patterns(spec.transposed)
        # A checkpoint has many layers of the same options.
        self._known = cache(self._options)

    def options(self, module: str) -> LayerOptions:
        """Return the options of a weight's module; the first override that fits counts."""
        number = self._overrides.find(module)
        given = self._transposed.fit(module) or self._modules.is_turned(module)
        inferred = not given and self._modules.is_transposed(module)
        return self._known(number, given or inferred, inferred, *self._conv(module, number))

    def _options(
        self,
        number: int | None,
        transposed: bool,  # noqa: FBT001
        inferred: bool,  # noqa: FBT001
        conv: str | None,
        kernel: tuple[int, ...],
    ) -> LayerOptions:
        override = NO_OVERRIDE if number is None else self._spec.overrides[number]
        spec = self._spec
        storage = (override.cur or spec.cur).storage
        options = FormOptions(override.selector or spec.selector, storage, spec.group)
        forms: tuple[Form, ...]
        if conv is not None:
            forms = (kernel_form(conv, kernel),)
        else:
            forms = tuple(FORMS[name].of(options) for name in methods_of(override.method or spec.method))
        by_override = conv is not None and override.conv is not None
        return LayerOptions(
            -1 if number is None else number, override, forms, transposed, inferred, by_override
        )

    def _conv(self, module: str, number: int | None) -> tuple[str | None, tuple[int, ...]]:
        """Return the form that the spec names for a weight as a convolution's, and its kernel.

        The form is None for all other weights.
        """
        own = None if number is None else self._spec.overrides[number].conv
        conv = own or self._spec.conv
        shape = () if conv is None else self._modules.shape(module + WEIGHT)
        if len(shape) - 2 not in KERNEL_SIDES or 0 in shape:
            return None, ()
        return (conv if own or self._is_convolution(module, shape) else None), shape[2:]

    def pattern_rule(self, module: str) -> str | None:
        """Return the rule by which the patterns leave out a module, or None if they select it."""
        if not self._include.fit(module):
            return "include"
        biased = self._modules.has_bias(module)
        patterns = self._for_biased if biased else self._spec.exclude
        found = (self._exclude_biased if biased else self._exclude).find(module)
        return None if found is None else EXCLUDE + patterns[found]

    def shape_rule(self, tensor: Tensor) -> str:
        """Return the rule by which a tensor is left out that no form can replace."""
        if len(tensor.shape) < 2:
            return "vector"
        if tensor.dtype not in FLOAT_DTYPES:
            return "dtype"
        if not tensor.name.endswith(WEIGHT):
            return _name_rule(tensor)
        module = tensor.name.removesuffix(WEIGHT)
        return "convolution" if self._is_convolution(module, tensor.shape) else "stack"

    def _is_convolution(self, module: str, shape: tuple[int, ...]) -> bool:
        if len(shape) > 3 or shape[-1] <= LONGEST_KERNEL:
            return True
        # The biases of stacked experts are stacked too.
        return self._modules.has_bias(module)


def is_float_weight(tensor: Tensor) -> bool:
    """Return whether a tensor is a weight of floats, named `*.weight`."""
    return tensor.name.endswith(WEIGHT) and tensor.dtype in FLOAT_DTYPES


def can_be_factored(tensor: Tensor, forms: Iterable[Form], *, transposed: bool = False) -> bool:
    """Return whether a tensor is a weight of floats, named `*.weight`, to which one of the forms applies."""
    shape = turned(tensor.shape) if transposed else tensor.shape
    return is_float_weight(tensor) and any(form.applies_to(shape) for form in forms)


def _name_rule(tensor: Tensor) -> str:
    """Return the rule for a tensor of floats with sides whose name is not that of a module's weight."""
    last = tensor.name.rpartition(".")[2]
    if last in ATTENTION_WEIGHTS:
        return "in_projection"
    if _is_recurrent(last):
        return "recurrent"
    if _is_part_of_weight(last):
        return "reparametrized"
    if tensor.name == "weight":
        return "no_module"
    # A buffer such as a mask may have more dimensions too, but some of length one.
    return "stack" if len(tensor.shape) > 2 and min(tensor.shape) > 1 else "other_name"
