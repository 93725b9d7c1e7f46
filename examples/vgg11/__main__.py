"""The study of VGG-11: `python -m examples.vgg11`; `make study` runs all studies.

Trains VGG-11 on digits, starts a service that compresses the classifier at a sweep of factors by SVD, CX and
CUR, and writes the accuracy at each factor, before and after a short fine-tune, as a table and a chart. A
second table and chart have integers and budgets in bytes as well.
"""

import copy
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch

from benchmarks.standalone import running
from eckart import Client, EckartError
from eckart.torch import load_compressed
from examples import trial
from examples.arguments import arguments
from examples.frontier import frontier_chart, quality_table
from examples.page import publish
from examples.plot import Axis
from examples.recipes import Subject, low_rank, mixed, rounded
from examples.vgg11.digits import digits
from examples.vgg11.network import VGG11, parameters
from examples.vgg11.result import accuracy_chart, accuracy_table, neighbour_table
from examples.vgg11.study import Measured, Study, trained
from examples.vgg11.sweep import FACTORED, neighbours, sweep
from examples.vgg11.training import accuracy

SHARES = (0.05, 0.2)
BYTES = (0.05, 0.15, 0.2)
WRONG = Axis("wrong test pictures, %", 2, 100, (2, 3, 5, 10, 20, 50, 100), logarithmic=True)


def main() -> int:
    given = arguments("vgg11", __doc__)
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
        publish_by_bytes(measured_by_bytes(study, file), given.into, docs=given.docs)
        for tune, points in ((True, sweep()), (False, neighbours())):
            for point in points:
                measured.append(study.measure(point, tune=tune))
                print(f"{time.monotonic() - began:6.0f} s  {measured[-1]}", flush=True)
    of_sweep = [one for one in measured if one.tuned is not None]
    tables = [accuracy_table(dense, parameters(network.classifier), of_sweep), neighbour_table(measured)]
    picture = accuracy_chart(dense, of_sweep)
    publish(given.into, "vgg11", tables="\n\n".join(tables), picture=picture, docs=given.docs)
    print(f"\nTables and charts are in {given.into}; all of it took {time.monotonic() - began:.0f} s")
    return 0


def measured_by_bytes(study: Study, file: Path) -> Sequence[trial.Measured]:
    """Measure all forms without a calibration: a Gram matrix of the first layer's inputs would take 5 GB."""
    subject = Subject(
        include=FACTORED,
        weight_bytes=sum(study.network.get_parameter(f"{name}.weight").nbytes for name in FACTORED),
        file_bytes=file.stat().st_size,
    )

    def judge(folder: Path) -> tuple[float, ...]:
        compressed = load_compressed(copy.deepcopy(study.network), folder).eval()
        return (100 * accuracy(compressed.classify, study.test),)

    jobs = trial.Trial(study.client, study.checkpoint, study.place, judge)
    recipes = chain(low_rank(subject, SHARES), rounded(subject), mixed(subject, BYTES))
    return trial.measure_all(jobs, recipes)


def publish_by_bytes(measured: Sequence[trial.Measured], into: Path, *, docs: bool) -> None:
    """Publish the second table and chart; the sweep that follows takes much longer."""
    table = quality_table(("accuracy %",), (2,), measured)
    title = "VGG-11: the frontier of each family"
    picture = frontier_chart(title, WRONG, lambda right: 100 - right, measured)
    publish(into, "vgg11-bytes", tables=table, picture=picture, docs=docs)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EckartError as error:
        sys.exit(f"vgg11: {error}")
    except KeyboardInterrupt:
        sys.exit("vgg11: interrupted")
