"""The study of a language model: `python -m examples.language`; `make study` runs all studies.

Trains a small causal language model over bytes on docstrings of the standard library, compresses its linear
layers by the rules of the other studies, and measures the perplexity on docstrings of other files.
"""

import sys
from itertools import chain

import torch

from benchmarks.standalone import running
from eckart import Client, EckartError
from eckart.calibrate import calibrate
from examples.arguments import arguments
from examples.frontier import frontier_chart, quality_table
from examples.language.network import Language
from examples.language.study import LAYERS, NAME, HeldOut, weight_bytes
from examples.language.text import text
from examples.language.training import perplexity, trained, windows
from examples.page import publish
from examples.plot import Axis
from examples.recipes import Subject, low_rank, mixed, neurons, rounded
from examples.trial import Trial, measure_all

SHARES = (0.1, 0.3, 0.5)
BYTES = (0.04, 0.06, 0.08, 0.125, 0.2)
CALIBRATION_WINDOWS, HELD_OUT_WINDOWS = 64, 128
ABOVE = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10)


def main() -> int:
    given = arguments("language", __doc__)
    torch.set_num_threads(given.threads)
    given.into.mkdir(parents=True, exist_ok=True)
    parts, file = text(), given.into / NAME
    network = trained(Language(), parts.training, file)
    held_out = windows(parts.evaluation, HELD_OUT_WINDOWS)
    dense = perplexity(network, held_out)
    print(f"Trained, or found in {file}: perplexity {dense:.3f} of each next byte")
    batches = [window[None, :-1] for window in windows(parts.calibration, CALIBRATION_WINDOWS)]
    inputs = calibrate(network, batches, given.into / "language-inputs.safetensors", include=[LAYERS])
    both = calibrate(
        network,
        batches,
        given.into / "language-both.safetensors",
        include=[LAYERS],
        sensitivity="fisher",
        output=lambda scores, _: scores,
    )
    with running(given.into, threads=given.threads) as service, Client(service.url) as client:
        trial = Trial(client, client.upload(file), given.into / "result", HeldOut(held_out).judge)
        subject = Subject(
            include=[LAYERS],
            weight_bytes=weight_bytes(network),
            file_bytes=file.stat().st_size,
            inputs=client.upload(inputs),
            both=client.upload(both),
        )
        recipes = chain(
            low_rank(subject, SHARES), neurons(subject, SHARES), rounded(subject), mixed(subject, BYTES)
        )
        measured = measure_all(trial, recipes)
    tables = quality_table(("perplexity",), (4,), measured)
    above = Axis("relative rise of the perplexity", ABOVE[0], ABOVE[-1], ABOVE, logarithmic=True)
    picture = frontier_chart(
        "Language model: the frontier of each family", above, lambda found: found / dense - 1, measured
    )
    publish(given.into, "language", tables=tables, picture=picture, docs=given.docs)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EckartError as error:
        sys.exit(f"language: {error}")
    except KeyboardInterrupt:
        sys.exit("language: interrupted")
