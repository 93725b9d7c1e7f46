"""What each form costs beside `svd` at the same rank, per shape: seconds and the share of the parameters."""

import math
import time
from statistics import median

import torch

from benchmarks.options import Options
from benchmarks.spectra import matrix
from benchmarks.table import show
from schemas.planning.forms import FORMS, FormOptions
from worker.lowrank import FactorRequest, Method, PivotMethod, SVDMethod, factor

SHAPES = ((384, 384), (1536, 384), (1024, 1024), (4096, 1024))
METHODS: dict[str, Method] = {"svd": SVDMethod(), "pivot": PivotMethod()}
MOST_ROUNDS = 3


def ask(options: Options) -> None:
    """Factor weights at a quarter of their shorter side, on singular values that follow a power law."""
    torch.set_num_threads(options.threads)
    rows = []
    for shape in SHAPES:
        height, width = (math.ceil(side * options.scale) for side in shape)
        weight, rank = matrix("power law", height, width)[0], min(height, width) // 4
        spent = {
            name: _seconds(weight, method, rank, min(options.rounds, MOST_ROUNDS))
            for name, method in METHODS.items()
        }
        for name, seconds in spent.items():
            parameters = FORMS[name].of(FormOptions()).parameters((height, width), rank)
            rows.append(
                (
                    f"{height} x {width}, rank {rank}, {name}",
                    f"{seconds:.3f}",
                    f"{seconds / spent['svd']:.2f}",
                    f"{parameters / weight.numel():.2f}",
                )
            )
    show("Forms beside svd", ("weight", "seconds", "times svd", "parameters"), rows)


def _seconds(weight: torch.Tensor, method: Method, rank: int, rounds: int) -> float:
    request = FactorRequest(method=method, rank=rank, max_rank=min(weight.shape), dtype=torch.float32)
    spent = []
    for _ in range(rounds):
        begun = time.perf_counter()
        factor(weight, request)
        spent.append(time.perf_counter() - begun)
    return median(spent)
