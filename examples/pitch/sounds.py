"""Tones and glides of known pitch, made from a seed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.pitch.network import FRAME, SAMPLE_RATE

LOWEST_HZ, HIGHEST_HZ = 70.0, 900.0
HARMONICS = 12
# The pitch of a glide changes by at most this much within a frame of 64 ms.
GLIDE_CENTS = 100.0
NOISE = 0.03  # of the sound's own size


@dataclass(frozen=True)
class Sounds:
    """Frames [sounds, samples] as the network takes them, and the pitch in the middle of each, in cents."""

    frames: Tensor
    cents: Tensor


def sounds(count: int, *, seed: int, gliding: bool) -> Sounds:
    """Make sounds of harmonics that fall off at random, with some noise, all over the range of voices."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    pitch = LOWEST_HZ * (HIGHEST_HZ / LOWEST_HZ) ** drawn(count, 1)
    time = (torch.arange(FRAME, dtype=torch.float64) - FRAME / 2) / SAMPLE_RATE
    slope = (2 * drawn(count, 1) - 1) * GLIDE_CENTS / 1200 * math.log(2) * SAMPLE_RATE / FRAME
    # The integral of pitch·e^(slope·t), so that the pitch at t = 0 is the one drawn.
    turns = pitch * (torch.expm1(slope * time) / slope if gliding else time)
    numbers = torch.arange(1, HARMONICS + 1, dtype=torch.float64)
    heard = pitch * numbers < SAMPLE_RATE / 2
    loudness = heard * numbers ** -(0.5 + 1.5 * drawn(count, 1)) * (0.5 + drawn(count, HARMONICS))
    angles = 2 * math.pi * (turns[:, None] * numbers[:, None] + drawn(count, HARMONICS, 1))
    waves = (loudness[:, :, None] * torch.sin(angles)).sum(1)
    noise = torch.randn(count, FRAME, generator=generator, dtype=torch.float64)
    waves = waves + NOISE * waves.std(1, keepdim=True) * noise
    waves = (waves - waves.mean(1, keepdim=True)) / waves.std(1, keepdim=True)
    return Sounds(waves.float(), 1200 * torch.log2(pitch[:, 0] / 10))
