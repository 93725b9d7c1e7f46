"""eckart/transformers: the quantization_config of another release."""

import shutil

import pytest
import torch

from eckart import LoadError
from tests.eckart.transformers.folders import QUIET, change_config, quantization_of

pytestmark = QUIET


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version.*upgrade eckart"),
        ({"layers": {"x": {"method": "svd"}}}, "layers/x/rank.*upgrade eckart"),
        ({"layers": 3}, "layers"),
    ],
)
def test_a_folder_of_another_version_is_refused(shared, tmp_path, change, message):
    shutil.copytree(shared.compressed, tmp_path / "newer")
    quantization = quantization_of(tmp_path / "newer")
    change_config(tmp_path / "newer", {"quantization_config": quantization | change})
    with pytest.raises(LoadError, match=message):
        shared.kind.from_pretrained(tmp_path / "newer")


def test_fields_of_a_newer_release_are_let_by(shared, tmp_path):
    shutil.copytree(shared.compressed, tmp_path / "newer")
    quantization = quantization_of(tmp_path / "newer")
    quantization["note"] = "later"
    for entry in quantization["layers"].values():
        entry["note"] = "later"
    change_config(tmp_path / "newer", {"quantization_config": quantization})
    model = shared.kind.from_pretrained(tmp_path / "newer")
    assert torch.equal(shared.computed(model), shared.computed(shared.load()))
