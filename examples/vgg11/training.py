"""Training of the whole network or of its classifier alone, and the accuracy."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.vgg11.digits import Pictures

BATCH = 64
TEST_BATCH = 200

Forward = Callable[[Tensor], Tensor]


def fit(
    forward: Forward,
    weights: Iterable[nn.Parameter],
    data: Pictures,
    *,
    epochs: int,
    rate: float,
    seed: int,
    penalty: Callable[[], Tensor] | None = None,
) -> None:
    """Minimize the cross entropy and perhaps a penalty by Adam, with cosine annealing of the rate to zero."""
    torch.manual_seed(seed)
    steps = epochs * -(-len(data.labels) // BATCH)
    descent = torch.optim.Adam(weights, lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, steps)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(data.labels)), BATCH):
            # Gradients take half a gigabyte; filling them with zeros is faster than allocating them again.
            descent.zero_grad(set_to_none=False)
            loss = functional.cross_entropy(forward(data.inputs[batch]), data.labels[batch])
            if penalty is not None:
                loss = loss + penalty()
            torch.autograd.backward(loss)
            descent.step()
            schedule.step()


@torch.inference_mode()
def outputs(forward: Forward, inputs: Tensor) -> Tensor:
    """Return the outputs for all inputs, computed in batches."""
    return torch.cat([forward(batch) for batch in torch.split(inputs, TEST_BATCH)])


def accuracy(forward: Forward, data: Pictures) -> float:
    """Return the share of the inputs whose highest score is that of their class."""
    hits = outputs(forward, data.inputs).argmax(1) == data.labels
    return hits.double().mean().item()
