"""VGG-11 trained with penalties on its singular values: `python -m examples.vgg11.regularized`.

Trains the network three times on the same digits, plain and with each penalty, lets a service compress the
classifier to a few small ranks by SVD, and tests each result as it is, without fine-tuning. The network has
half of VGG-11's channels and an eighth of its hidden units, so that singular values in every step take
minutes.
"""

import copy
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.standalone import running
from eckart import Client, EckartError
from eckart.torch import load_compressed
from eckart.train import LowRankPenalty
from examples.arguments import arguments
from examples.page import publish, table
from examples.plot import COLOURS, Axis, Line, chart
from examples.vgg11.digits import Pictures, digits
from examples.vgg11.network import VGG11, parameters
from examples.vgg11.study import SEED
from examples.vgg11.sweep import FACTORED
from examples.vgg11.training import accuracy, fit

HIDDEN, THINNER = 512, 2
EPOCHS, RATE = 24, 1e-3
RANKS = (32, 16, 8, 6, 4, 3, 2)


@dataclass(frozen=True)
class Way:
    """A way to train: the penalty's kind, and its factor in the loss."""

    name: str
    kind: str | None = None
    factor: float = 0.0

    def penalty(self, network: VGG11) -> Callable[[], Tensor] | None:
        """Return what is added to the loss, if anything is."""
        match self.kind:
            case None:
                return None
            case "nuclear" | "hoyer" as kind:
                sum_of = LowRankPenalty(network, kind=kind, include=FACTORED)
                return lambda: self.factor * sum_of()
        raise ValueError(f"no penalty is called {self.kind}")


WAYS = (Way("plain"), Way("nuclear norm", "nuclear", 1e-3), Way("Hoyer", "hoyer", 1e-3))


@dataclass(frozen=True)
class Trained:
    """The accuracy of a network as trained, and after compression, by rank; shares of the test pictures."""

    way: Way
    dense: float
    by_rank: Mapping[int, float]
    factors: Mapping[int, float]


def trained(network: VGG11, way: Way, train: Pictures, file: Path) -> VGG11:
    """Train the network and store it in a file, or load it from there."""
    if file.exists():
        network.load_state_dict(load_file(file))
        return network.eval()
    network.start(SEED)
    fit(
        network.train(),
        network.parameters(),
        train,
        epochs=EPOCHS,
        rate=RATE,
        seed=SEED,
        penalty=way.penalty(network),
    )
    save_file(network.eval().state_dict(), file)
    return network


def measure(
    client: Client, way: Way, network: VGG11, file: Path, test: Pictures, ranks: tuple[int, ...]
) -> Trained:
    """Compress the classifier's large layers to each rank, and test what comes out."""
    checkpoint = client.upload(file)
    place = file.with_suffix("")
    by_rank, factors = {}, {}
    for rank in ranks:
        job = client.compress(checkpoint, {"method": "svd", "rank": rank, "include": list(FACTORED)})
        shutil.rmtree(place, ignore_errors=True)
        client.download(job.id, place)
        client.delete(job.id)
        compressed = load_compressed(copy.deepcopy(network), place).eval()
        by_rank[rank] = accuracy(compressed, test)
        factors[rank] = parameters(network.classifier) / parameters(compressed.classifier)
    return Trained(way, accuracy(network, test), by_rank, factors)


def accuracy_table(measured: list[Trained]) -> str:
    """Return one line for the networks as trained and one for each rank."""
    header = ["rank", "factor of the classifier", *(f"{one.way.name}, %" for one in measured)]
    rows = [["as trained", "1.0", *(f"{100 * one.dense:.2f}" for one in measured)]]
    for rank, factor in measured[0].factors.items():
        rows.append([str(rank), f"{factor:.1f}", *(f"{100 * one.by_rank[rank]:.2f}" for one in measured)])
    return table(header, rows)


def accuracy_chart(measured: list[Trained]) -> str:
    """Draw the accuracy against the rank."""
    ranks = tuple(measured[0].by_rank)
    x = Axis("rank of both layers", min(ranks), max(ranks), ranks, logarithmic=True)
    y = Axis("accuracy on the test pictures, %", 0, 100, range(0, 101, 20))
    lines = [
        Line(one.way.name, [(rank, 100 * share) for rank, share in one.by_rank.items()], colour)
        for one, colour in zip(measured, COLOURS, strict=False)
    ]
    return chart("VGG-11 on digits: trained with a penalty, then compressed", x, y, lines)


def main() -> int:
    given = arguments("vgg11.regularized", __doc__)
    torch.set_num_threads(given.threads)
    given.into.mkdir(parents=True, exist_ok=True)
    train, test = digits()
    measured = []
    with running(given.into, threads=given.threads) as service, Client(service.url) as client:
        for way in WAYS:
            file = given.into / f"vgg11-{way.kind or 'plain'}.safetensors"
            network = trained(VGG11(hidden=HIDDEN, thinner=THINNER), way, train, file)
            measured.append(measure(client, way, network, file, test, RANKS))
            print(measured[-1], flush=True)
    publish(
        given.into,
        "regularized",
        tables=accuracy_table(measured),
        picture=accuracy_chart(measured),
        docs=given.docs,
    )
    print(f"Table and chart are in {given.into}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EckartError as error:
        sys.exit(f"vgg11.regularized: {error}")
    except KeyboardInterrupt:
        sys.exit("vgg11.regularized: interrupted")
