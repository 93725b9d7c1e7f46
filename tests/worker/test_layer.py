"""worker/layer.py: a report of very many layers samples each spectrum at fewer points."""

from dataclasses import replace

import pytest
import torch

from schemas.format.files import open_checkpoint
from schemas.spec import CompressionSpec
from worker.context import LayerInputs
from worker.layer import factor_layer
from worker.work_plan import ALL_POINTS, LEAST_POINTS, plan_work, spectrum_points


@pytest.mark.parametrize("layers", [0, 1, 100, 512, 513, 10_000, 16_384, 16_385, 10**6])
def test_all_layers_together_have_a_bounded_number_of_points_or_the_least_of_each(layers):
    points = spectrum_points(layers)

    assert LEAST_POINTS <= points <= 256
    assert points == LEAST_POINTS or points * layers <= ALL_POINTS
    assert points == 256 or layers > 512


def test_a_task_says_how_many_points_the_report_has_of_its_spectrum(save, gaussian):
    weight = gaussian(60, 40)
    (task,) = plan_work(open_checkpoint(save({"a.weight": weight})), CompressionSpec(rank=4)).tasks
    device = torch.device("cpu")
    outcome, _ = factor_layer(replace(task, spectrum_points=8), LayerInputs(weight), seed=0, device=device)

    values = torch.linalg.svdvals(weight.double())
    indices = outcome.report.singular_value_indices
    assert len(indices) == 8
    assert (indices[0], indices[-1]) == (0, 39)
    assert outcome.report.singular_values == pytest.approx([float(values[i]) for i in indices], rel=1e-3)
