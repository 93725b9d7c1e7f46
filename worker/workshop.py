"""What every layer of a job is worked on with: where it is read, kept and found, and on which device."""

from dataclasses import dataclass

import torch

from worker.checkpoint.spool import LayerSpool
from worker.decompositions import LayerMemo, Shelf
from worker.plan import LayerTask
from worker.progress import Meter
from worker.sources import Sources


@dataclass(frozen=True, slots=True)
class Given:
    """What a layer is made of: weight [outputs, inputs], Gram matrix of its inputs, and what is known."""

    weight: torch.Tensor
    gram: torch.Tensor | None
    memo: LayerMemo | None


@dataclass(frozen=True, slots=True)
class Workshop:
    """The tools of one job.

    Attributes
    ----------
    sources
        Where weights and Gram matrices are read.
    spool
        Where finished layers are; a layer counts as done once it is there, at the rank that is planned.
    shelf
        Where decompositions are found and kept, if they are.
    meter
        Told of each layer that begins and ends; what its observer raises stops the work.
    seed
        Seeds the sampling selectors.
    device
        Where the numerics run.
    """

    sources: Sources
    spool: LayerSpool
    shelf: Shelf | None
    meter: Meter
    seed: int
    device: torch.device

    def given(self, task: LayerTask) -> Given:
        """Read all that a layer is made of."""
        memo = self.shelf.memo(task) if self.shelf else None
        if memo:
            memo.get(0)  # Read ahead with the weight: it is what most layers ask for first.
        return Given(self.sources.weight(task), self.sources.gram(task), memo)
