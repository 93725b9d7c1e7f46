"""The study of MiniLM: `python -m examples.embeddings`; `make study` runs all studies.

Starts a service that compresses the encoder by many rules, each at several sizes: low rank with no, one-sided
and two-sided calibration, integers, both together, one budget over all forms, and fewer neurons. Then
compares the sentence vectors.
"""

import sys
from itertools import chain

import torch

from benchmarks.standalone import running
from eckart import Client, EckartError
from eckart.calibrate import calibrate
from examples.arguments import arguments
from examples.embeddings.study import LAYERS, Sentences, original, sentences, vectors, weight_bytes
from examples.frontier import frontier_chart, quality_table
from examples.minilm import installed, token_ids
from examples.page import publish
from examples.plot import Axis
from examples.recipes import Subject, low_rank, mixed, neurons, rounded
from examples.trial import Trial, measure_all

SHARES = (0.3, 0.5, 0.7, 0.9)
BYTES = (0.125, 0.15, 0.17, 0.2, 0.24, 0.3)
PROBES = 8
FIGURES = ("mean cosine", "least cosine", "same nearest sentence")
LOSS = Axis("1 - mean cosine to the original vector", 1e-4, 1, (1e-4, 1e-3, 1e-2, 1e-1, 1), logarithmic=True)


def main() -> int:
    given = arguments("embeddings", __doc__)
    torch.set_num_threads(given.threads)
    given.into.mkdir(parents=True, exist_ok=True)
    model, file = original(), installed("model.safetensors")
    ids = [token_ids(text) for text in sentences("calibration")]
    inputs = calibrate(model, ids, given.into / "minilm-inputs.safetensors", include=[LAYERS])
    both = calibrate(
        model,
        ids,
        given.into / "minilm-both.safetensors",
        include=[LAYERS],
        sensitivity="output",
        output=lambda vector, _: vector,
        probes=PROBES,
    )
    texts = sentences("evaluation")
    with running(given.into, threads=given.threads) as service, Client(service.url) as client:
        trial = Trial(
            client=client,
            checkpoint=client.upload(file),
            place=given.into / "result",
            judge=Sentences(texts, vectors(model, texts)).judge,
        )
        subject = Subject(
            include=[LAYERS],
            weight_bytes=weight_bytes(model),
            file_bytes=file.stat().st_size,
            inputs=client.upload(inputs),
            both=client.upload(both),
        )
        recipes = chain(
            low_rank(subject, SHARES), neurons(subject, SHARES), rounded(subject), mixed(subject, BYTES)
        )
        measured = measure_all(trial, recipes)
    tables = quality_table(FIGURES, (5, 4, 2), measured)
    picture = frontier_chart("MiniLM: the frontier of each family", LOSS, lambda cosine: 1 - cosine, measured)
    publish(given.into, "minilm", tables=tables, picture=picture, docs=given.docs)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EckartError as error:
        sys.exit(f"embeddings: {error}")
    except KeyboardInterrupt:
        sys.exit("embeddings: interrupted")
