"""Upload one network, compress its classifier by many jobs, and measure the accuracy of each result."""

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from eckart import Client
from eckart.torch import load_compressed
from examples.vgg11.digits import Pictures
from examples.vgg11.network import VGG11, parameters
from examples.vgg11.sweep import Point
from examples.vgg11.training import accuracy, fit, outputs

TRAIN_EPOCHS, TRAIN_RATE = 16, 2e-4
TUNE_EPOCHS, TUNE_RATE = 3, 1e-4
SEED = 0


@dataclass(frozen=True)
class Measured:
    """The result of one job; accuracies are shares of the test pictures."""

    point: Point
    ranks: tuple[int, ...]
    parameters: int
    classifier_factor: float
    whole_factor: float
    relative_error: float
    accuracy: float
    tuned: float | None


def trained(network: VGG11, train: Pictures, file: Path) -> VGG11:
    """Train the network and store it in a file, or load it from there."""
    if file.exists():
        network.load_state_dict(load_file(file))
        return network.eval()
    network.start(SEED)
    fit(network.train(), network.parameters(), train, epochs=TRAIN_EPOCHS, rate=TRAIN_RATE, seed=SEED)
    save_file(network.eval().state_dict(), file)
    return network


@dataclass(frozen=True)
class Study:
    """An uploaded network, and the outputs of its convolutions, which no job changes."""

    client: Client
    checkpoint: str
    network: VGG11
    train: Pictures
    test: Pictures
    place: Path

    @classmethod
    def of(
        cls, client: Client, file: Path, network: VGG11, pictures: tuple[Pictures, Pictures], place: Path
    ) -> "Study":
        """Upload the network once, and run its convolutions once."""
        checkpoint = client.upload(file)
        train, test = (
            Pictures(outputs(network.features, some.inputs).clone(), some.labels) for some in pictures
        )
        return cls(client, checkpoint, network, train, test, place)

    def measure(self, point: Point, *, tune: bool) -> Measured:
        """Run a job, load its result into stock modules and test it; with `tune`, also after fine-tuning."""
        compressed, relative_error = self._compressed(point)
        before, after = self.network, compressed
        plain = accuracy(after.classify, self.test)
        tuned = None
        if tune:
            weights = after.train().classifier.parameters()
            fit(after.classify, weights, self.train, epochs=TUNE_EPOCHS, rate=TUNE_RATE, seed=SEED)
            tuned = accuracy(after.eval().classify, self.test)
        return Measured(
            point=point,
            ranks=tuple(point.ranks(before).values()),
            parameters=parameters(after.classifier),
            classifier_factor=parameters(before.classifier) / parameters(after.classifier),
            whole_factor=parameters(before) / parameters(after),
            relative_error=relative_error,
            accuracy=plain,
            tuned=tuned,
        )

    def _compressed(self, point: Point) -> tuple[VGG11, float]:
        job = self.client.compress(self.checkpoint, point.spec(self.network))
        relative_error = self.client.report(job.id).totals.relative_error
        shutil.rmtree(self.place, ignore_errors=True)
        self.client.download(job.id, self.place)
        self.client.delete(job.id)
        return load_compressed(copy.deepcopy(self.network), self.place).eval(), relative_error
