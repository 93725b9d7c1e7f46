"""Run one job of a study and measure the quality of its result."""

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from eckart import Client
from examples.recipes import Recipe

# From the folder of a result to the figures of its quality, the main one first.
Judge = Callable[[Path], tuple[float, ...]]


@dataclass(frozen=True)
class Measured:
    """What a recipe gave: shares of the selected weights' parameters and bytes, error, and quality."""

    recipe: Recipe
    parameters: float
    bytes: float
    relative_error: float
    quality: tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """An uploaded checkpoint, a folder for results, and a judge."""

    client: Client
    checkpoint: str
    place: Path
    judge: Judge

    def measure(self, recipe: Recipe) -> Measured:
        """Run the job, download its result and judge it."""
        job = self.client.compress(self.checkpoint, recipe.spec)
        report = self.client.report(job.id)
        shutil.rmtree(self.place, ignore_errors=True)
        self.client.download(job.id, self.place)
        self.client.delete(job.id)
        layers = report.layers
        return Measured(
            recipe=recipe,
            parameters=sum(x.parameters_after for x in layers) / sum(x.parameters_before for x in layers),
            bytes=sum(x.bytes_after for x in layers) / sum(x.bytes_before for x in layers),
            relative_error=report.totals.relative_error,
            quality=self.judge(self.place),
        )


def measure_all(trial: Trial, recipes: Iterable[Recipe]) -> list[Measured]:
    """Measure every recipe, and print each result when it is there."""
    began = time.monotonic()
    measured = []
    for recipe in recipes:
        one = trial.measure(recipe)
        measured.append(one)
        figures = ", ".join(f"{figure:.5f}" for figure in one.quality)
        what = f"{recipe.rule}, {recipe.asked}".rstrip(", ")
        print(
            f"{time.monotonic() - began:6.0f} s  {what}: {one.bytes:.4f} of the bytes; {figures}", flush=True
        )
    return measured
