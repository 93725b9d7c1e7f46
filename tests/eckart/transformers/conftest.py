"""Folders that many tests load and none changes."""

import pytest

from tests.eckart.transformers.folders import MODELS, make


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    """Return a folder that a job made of a model with random weights, and what that model computes."""
    return make(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return make(tmp_path_factory.mktemp("shared"), "llama")
