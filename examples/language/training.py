"""Training of the language model, and its perplexity."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from examples.language.network import Language

CONTEXT, BATCH, STEPS = 256, 8, 600
RATE, DECAY, WARM = 2e-3, 0.1, 50
SEED = 0
TOLD = 50  # steps between two lines


def trained(network: Language, text: Tensor, file: Path, *, steps: int = STEPS) -> Language:
    """Train the network and store it in a file, or load it from there."""
    if file.exists():
        network.load_state_dict(load_file(file))
        return network.eval()
    network.start(SEED)
    fit(network.train(), text, steps=steps)
    save_file(network.eval().state_dict(), file)
    return network


def fit(network: Language, text: Tensor, *, steps: int, say: Callable[[str], None] = print) -> None:
    """Minimize the cross entropy of the next byte by AdamW, on windows drawn at random."""
    chance = torch.Generator().manual_seed(SEED)
    descent = torch.optim.AdamW(
        network.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=DECAY, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(descent, lambda step: _rate(step, steps))
    began = time.monotonic()
    for step in range(steps):
        starts = torch.randint(len(text) - CONTEXT, (BATCH,), generator=chance)
        windows = torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()])
        loss = _entropy(network, windows)
        descent.zero_grad()
        torch.autograd.backward(loss)
        descent.step()
        schedule.step()
        if (step + 1) % TOLD == 0:
            say(f"{time.monotonic() - began:6.0f} s  step {step + 1} of {steps}: {loss.item():.3f}")


def windows(text: Tensor, number: int) -> Tensor:
    """Cut `number` windows, each of CONTEXT bytes and the next one, evenly out of a text."""
    starts = torch.linspace(0, len(text) - CONTEXT - 1, number).long()
    return torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()])


@torch.inference_mode()
def perplexity(network: Language, held_out: Tensor) -> float:
    """Return e to the mean cross entropy of each next byte of the windows."""
    batches = torch.split(held_out, BATCH)
    total = sum(_entropy(network, batch).item() * len(batch) for batch in batches)
    return math.exp(total / len(held_out))


def _entropy(network: Language, windows: Tensor) -> Tensor:
    scores = network(windows[:, :-1])  # (batch, bytes, 256)
    return functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())


def _rate(step: int, steps: int) -> float:
    rising = min(1.0, (step + 1) / WARM)
    return rising * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
