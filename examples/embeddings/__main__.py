"""The study of MiniLM: `python -m examples.embeddings`; `make study` runs both studies.

Starts a service that compresses the encoder to several shares of its parameters: by one ratio for every layer
or by a budget over all layers, each with and without calibration. Then compares the sentence vectors.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from benchmarks.standalone import running
from eckart import Client, EckartError
from eckart.calibrate import calibrate
from examples.embeddings.result import similarity_chart, similarity_table
from examples.embeddings.study import (
    KEPT,
    LAYERS,
    RULES,
    Measured,
    Study,
    original,
    sentences,
    vectors,
)
from examples.minilm import installed, token_ids
from examples.page import publish

ROOT = Path(__file__).parents[2]


def main() -> int:
    given = _parser().parse_args()
    torch.set_num_threads(given.threads)
    given.into.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    measured: list[Measured] = []
    model, texts = original(), sentences("evaluation")
    inputs = (token_ids(text) for text in sentences("calibration"))
    grams = calibrate(model, inputs, given.into / "calibration.safetensors", include=[LAYERS])
    with running(given.into, threads=given.threads) as service, Client(service.url) as client:
        study = Study(
            client=client,
            checkpoint=client.upload(installed("model.safetensors")),
            calibration=client.upload(grams),
            texts=texts,
            before=vectors(model, texts),
            place=given.into / "result",
        )
        for one in study.measure(RULES, KEPT):
            measured.append(one)
            print(f"{time.monotonic() - began:6.0f} s  {one}", flush=True)
    tables, picture = similarity_table(measured), similarity_chart(measured)
    publish(given.into, "minilm", tables=tables, picture=picture, docs=given.docs)
    print(f"\nTable and chart are in {given.into}; all of it took {time.monotonic() - began:.0f} s")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.embeddings", description=__doc__)
    parser.add_argument("--into", type=Path, default=ROOT / "study", help="the directory for all files")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--docs", action="store_true", help="also update table and chart in docs/")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EckartError as error:
        sys.exit(f"embeddings: {error}")
    except KeyboardInterrupt:
        sys.exit("embeddings: interrupted")
