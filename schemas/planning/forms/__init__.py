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

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "FORMS",
    "Chain",
    "Form",
    "FormOptions",
    "Quantizer",
    "Selector",
    "Storage",
    "StoredMatrix",
    "register",
]
