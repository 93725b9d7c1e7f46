"""The benchmark of whole files runs at a small scale without a GPU: a rented one must not meet its faults."""

import pytest
import torch

from benchmarks import gpu_model
from benchmarks.options import Options


@pytest.fixture
def options(tmp_path):
    return Options(tmp_path, scale=0.02, rounds=1, threads=torch.get_num_threads())


def rows(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("svd", "int4"))]


def test_a_whole_model_is_compressed_by_each_spec(options, capsys):
    gpu_model.ask(options)
    # Each run is printed when it ends, and once more in the table.
    assert len(rows(capsys)) == 2 * len(gpu_model.WHOLE)


def test_blocks_are_compressed_with_and_without_statistics(options, capsys):
    gpu_model.compress_blocks(options, torch.device("cpu"))
    assert len(rows(capsys)) == 2 * (len(gpu_model.RUNS) + len(gpu_model.CALIBRATED))
