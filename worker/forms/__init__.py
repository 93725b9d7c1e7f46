"""Implementations of the forms: each module computes the tensors that `schemas.planning.forms` describes."""

import pkgutil
from importlib import import_module

from worker.forms.base import IMPLEMENTATIONS, FormInputs, Implementation, multiply_chain, register

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["IMPLEMENTATIONS", "FormInputs", "Implementation", "multiply_chain", "register"]
