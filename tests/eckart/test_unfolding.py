"""eckart/unfolding.py: statistics of convolutions, against torch's own unfolding and by their outputs."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from eckart import calibrate
from eckart.unfolding import Unfolding, is_convolution

LAYERS = [
    nn.Conv1d(6, 4, 3, padding=1),
    nn.Conv1d(6, 4, 4, stride=2, dilation=2),
    nn.Conv2d(6, 4, (3, 2), stride=(1, 2), padding=(2, 1)),
    nn.Conv2d(6, 4, 3, padding="same", dilation=2, padding_mode="reflect"),
    nn.Conv2d(6, 4, 4, padding="same", padding_mode="circular"),
    nn.Conv3d(6, 4, 2, stride=2, padding=1, padding_mode="replicate"),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("batched", [True, False])
def test_the_kernel_times_the_rows_are_the_outputs(layer, batched):
    sides = [9, 8, 6][: len(layer.kernel_size)]
    x = torch.randn(3, 6, *sides) if batched else torch.randn(6, *sides)

    rows = torch.cat(list(Unfolding.of(layer).rows(x)))

    wanted = layer(x) if batched else layer(x)[None]
    outputs = rows @ layer.weight.flatten(1).mT + layer.bias
    torch.testing.assert_close(outputs, wanted.movedim(1, -1).reshape(-1, 4), rtol=1e-4, atol=1e-5)


def test_rows_come_a_few_samples_at_a_time(monkeypatch):
    layer, x = nn.Conv2d(6, 4, 3), torch.randn(5, 6, 7, 7)
    whole = torch.cat(list(Unfolding.of(layer).rows(x)))
    monkeypatch.setattr("eckart.unfolding.PIECE", 6 * 49 * 9 * 2)

    pieces = list(Unfolding.of(layer).rows(x))

    assert [len(piece) for piece in pieces] == [50, 50, 25]
    assert torch.equal(torch.cat(pieces), whole)


class Net(nn.Module):
    """Two convolutions of one input and one unfolding, one of another, one in groups, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 4, 3)
        self.padded = nn.Conv2d(3, 4, 3, padding=1)
        self.grouped, self.turned = nn.Conv2d(3, 6, 3, groups=3), nn.ConvTranspose2d(3, 2, 3)
        self.head = nn.Linear(15, 2)

    def forward(self, x):
        parts = [layer(x).mean((2, 3)) for layer in (self.first, self.second, self.grouped)]
        return self.head(torch.cat(parts, 1)) + self.padded(x).mean() + self.turned(x).mean()


def test_calibrate_writes_the_moments_of_unfolded_inputs(tmp_path):
    torch.manual_seed(0)
    net, batches = Net(), [torch.randn(4, 3, 6, 6), torch.randn(2, 3, 8, 5)]
    path = calibrate(net, batches, tmp_path / "c.safetensors", sensitivity="output")

    found = load_file(path)

    assert {name.partition(".")[0] for name in found} == {"first", "padded", "head", "second"}
    rows = torch.cat([nn.functional.unfold(x, 3).mT.reshape(-1, 27) for x in batches]).double()
    torch.testing.assert_close(found["first.gram"].double(), rows.mT @ rows, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found["first.mean"].double(), rows.mean(0), rtol=1e-4, atol=1e-5)
    assert int(found["first.count"]) == len(rows)
    # The same input and the same unfolding: one tensor for both.
    assert "second.gram" not in found
    assert found["padded.gram"].shape == (27, 27)
    assert int(found["padded.count"]) == 4 * 36 + 2 * 40
    assert found["first.grad_gram"].shape == (5, 5)
    assert found["padded.grad_gram"].shape == (4, 4)


def test_gradients_are_summed_over_the_positions(tmp_path):
    layer, x = nn.Conv2d(3, 5, 3), torch.randn(2, 3, 6, 6)
    net = nn.Sequential(layer)
    path = calibrate(net, [x], tmp_path / "c.safetensors", sensitivity="output", probes=200)

    gram = load_file(path)["0.grad_gram"]

    # The output is probed by independent random numbers, one for each of 32 positions and each channel.
    torch.testing.assert_close(gram / 32, torch.eye(5), rtol=0, atol=0.2)


def test_what_is_no_plain_convolution_is_left_out():
    assert [is_convolution(layer) for layer in (nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3, groups=2))] == [
        True,
        False,
    ]
    assert not is_convolution(nn.ConvTranspose1d(4, 4, 3))
    assert Unfolding.of(nn.Linear(3, 3)) is None
