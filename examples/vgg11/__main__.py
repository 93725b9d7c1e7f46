"""The study of VGG-11: `python -m examples.vgg11`; `make study` runs both studies.

Trains VGG-11 on digits, starts a service that compresses the classifier at a sweep of factors by SVD, CX and
CUR, and writes the accuracy at each factor, before and after a short fine-tune, as a table and a chart.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from benchmarks.standalone import running
from eckart import Client, EckartError
from examples.page import publish
from examples.vgg11.digits import digits
from examples.vgg11.network import VGG11, parameters
from examples.vgg11.result import accuracy_chart, accuracy_table, neighbour_table
from examples.vgg11.study import Measured, Study, trained
from examples.vgg11.sweep import neighbours, sweep
from examples.vgg11.training import accuracy

ROOT = Path(__file__).parents[2]


def main() -> int:
    given = _parser().parse_args()
    torch.set_num_threads(given.threads)
    given.into.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    pictures = digits()
    file = given.into / "vgg11.safetensors"
    network = trained(VGG11(), pictures[0], file)
    dense = accuracy(network, pictures[1])
    print(f"Trained, or found in {file}: {dense:.2%} of the test pictures, {time.monotonic() - began:.0f} s")
    measured: list[Measured] = []
    with running(given.into, threads=given.threads) as service, Client(service.url) as client:
        study = Study.of(client, file, network, pictures, given.into / "result")
        for tune, points in ((True, sweep()), (False, neighbours())):
            for point in points:
                measured.append(study.measure(point, tune=tune))
                print(f"{time.monotonic() - began:6.0f} s  {measured[-1]}", flush=True)
    of_sweep = [one for one in measured if one.tuned is not None]
    tables = [accuracy_table(dense, parameters(network.classifier), of_sweep), neighbour_table(measured)]
    picture = accuracy_chart(dense, of_sweep)
    publish(given.into, "vgg11", tables="\n\n".join(tables), picture=picture, docs=given.docs)
    print(f"\nTable and chart are in {given.into}; all of it took {time.monotonic() - began:.0f} s")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.vgg11", description=__doc__)
    parser.add_argument("--into", type=Path, default=ROOT / "study", help="the directory for all files")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--docs", action="store_true", help="also update table and chart in docs/")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EckartError as error:
        sys.exit(f"vgg11: {error}")
    except KeyboardInterrupt:
        sys.exit("vgg11: interrupted")
