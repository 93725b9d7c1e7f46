"""What each form costs beside `svd` at the same rank, per shape: seconds, and the share of the bytes."""

import math
import time
from statistics import median

import torch

from benchmarks.options import Options
from benchmarks.spectra import matrix
from benchmarks.table import show
from schemas.format.tensor import TensorInfo
from schemas.planning.forms import FORMS
from schemas.planning.layer import LayerPlan
from schemas.planning.planner import make_plan
from schemas.spec import CompressionSpec
from worker.forms import FORM_IMPLEMENTATIONS, FormInputs
from worker.lowrank import Statistics

SHAPES = ((384, 384), (1536, 384), (1024, 1024), (4096, 1024))
# Neurons are no form of one weight.
METHODS = ("svd", *(name for name in FORMS if name not in {"svd", "neurons"}))
MOST_ROUNDS = 3


def ask(options: Options) -> None:
    """Replace weights at an eighth of their shorter side, without statistics and with both Gram matrices."""
    torch.set_num_threads(options.threads)
    rows = []
    for shape in SHAPES:
        height, width = (max(64, math.ceil(side * options.scale) // 64 * 64) for side in shape)
        weight, rank = matrix("power law", height, width)[0], min(height, width) // 8
        rounds = min(options.rounds, MOST_ROUNDS)
        calibrated = _statistics(height, width)
        spent = {
            (name, both): _seconds(_layer(name, weight, rank), weight, calibrated if both else None, rounds)
            for both in (False, True)
            for name in METHODS
        }
        for name in METHODS:
            layer = _layer(name, weight, rank)
            share = layer.bytes_after(layer.rank if isinstance(layer.rank, int) else None) / weight.nbytes
            plain, both = spent[name, False], spent[name, True]
            rows.append(
                (
                    f"{height} x {width}, rank {rank}, {name}",
                    f"{share:.3f}",
                    f"{plain:.3f}",
                    f"{plain / spent['svd', False]:.2f}",
                    f"{both:.3f}",
                    f"{both / spent['svd', True]:.2f}",
                )
            )
    head = ("weight", "bytes", "seconds", "times svd", "seconds with both Gram matrices", "times svd")
    show("Forms beside svd", head, rows)


def _layer(method: str, weight: torch.Tensor, rank: int) -> LayerPlan:
    rows, columns = weight.shape
    tensor = TensorInfo("layer.weight", "F32", (rows, columns), 0, weight.nbytes)
    return make_plan([tensor], CompressionSpec(method=method, rank=rank)).layers[0]


def _statistics(outputs: int, inputs: int) -> Statistics:
    generator = torch.Generator().manual_seed(0)

    def gram(side: int) -> torch.Tensor:
        x = torch.randn(2 * side, side, generator=generator) * torch.linspace(1, 0.2, side)
        return x.mT @ x

    return Statistics(gram=gram(inputs), grad_gram=gram(outputs), count=2.0 * inputs)


def _seconds(layer: LayerPlan, weight: torch.Tensor, statistics: Statistics | None, rounds: int) -> float:
    inputs = FormInputs(layer=layer, weight=weight, statistics=statistics, dtype=torch.float32, seed=0)
    spent = []
    for _ in range(rounds):
        begun = time.perf_counter()
        FORM_IMPLEMENTATIONS[layer.form.name].compute(inputs)
        spent.append(time.perf_counter() - begun)
    return median(spent)
