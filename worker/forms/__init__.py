"""Implementations of the forms: each module computes the tensors that `schemas.planning.forms` describes."""

import pkgutil
from importlib import import_module

from worker.forms.base import FORM_IMPLEMENTATIONS, FormImplementation, FormInputs, multiply_chain, register

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["FORM_IMPLEMENTATIONS", "FormImplementation", "FormInputs", "multiply_chain", "register"]
