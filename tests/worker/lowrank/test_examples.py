"""The examples in the docstrings of worker.lowrank."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["svd", "cur", "factor"])
def test_the_examples_in_the_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(f"worker.lowrank.{name}"))

    assert result.attempted > 0
    assert result.failed == 0
