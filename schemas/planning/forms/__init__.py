"""The forms: each module says how a weight is replaced. Importing this package registers all of them."""

import pkgutil
from importlib import import_module

from schemas.planning.forms.base import (
    FORMS,
    Chain,
    Form,
    FormOptions,
    Quantizer,
    Selector,
    Storage,
    StoredMatrix,
    register,
)
from schemas.planning.forms.kernel import CONV_FORMS, KernelForm, kernel_form

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "CONV_FORMS",
    "FORMS",
    "Chain",
    "Form",
    "FormOptions",
    "KernelForm",
    "Quantizer",
    "Selector",
    "Storage",
    "StoredMatrix",
    "kernel_form",
    "register",
]
