"""Fine-tuning: only what a job has replaced changes, and it gets better at what the loss asks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from eckart import InputError
from eckart.torch import load_compressed, save_compressed
from eckart.train import finetune
from tests.eckart.torch.factoring import compress


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Dropout(0.0), nn.Linear(12, 4))


@pytest.fixture
def factored(tmp_path):
    return load_compressed(network(), compress(network(), tmp_path / "x.safetensors", "0")[0]).eval()


def batches(count=30):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn((16, 8), generator=generator) for _ in range(count)]


def distance(model):
    """Return a loss: how far the outputs are from those of the network before."""
    dense = network().eval()

    def loss(outputs, batch):
        assert model.training
        return functional.mse_loss(outputs, dense(batch).detach())

    return loss


def test_the_outputs_come_nearer_and_all_else_stays(factored, tmp_path):
    with torch.no_grad():
        factored[0][1].weight.mul_(0.5)
    before = {name: value.clone() for name, value in factored.state_dict().items()}
    losses = finetune(factored, batches(), distance(factored), rate=1e-2)
    assert len(losses) == 30
    assert max(losses[-5:]) < 0.5 * min(losses[:2])
    changed = {name for name, value in factored.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.0.weight", "0.1.weight", "0.1.bias"}
    save_compressed(factored, tmp_path / "tuned.safetensors")
    again = load_compressed(network(), tmp_path / "tuned.safetensors").eval()
    assert torch.equal(again(batches(1)[0]), factored(batches(1)[0]))


def test_mode_and_frozen_parameters_are_as_before(factored):
    factored[0].train()
    factored[3].weight.requires_grad_(False)
    factored[0][1].bias.requires_grad_(False)

    def state():
        return (
            [module.training for module in factored.modules()],
            [parameter.requires_grad for parameter in factored.parameters()],
        )

    before = state()
    finetune(factored, batches(1), distance(factored))
    assert state() == before

    def broken(outputs, batch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        finetune(factored, batches(1), broken)
    assert state() == before


@pytest.mark.parametrize(("steps", "taken"), [(None, 3), (2, 2), (0, 0), (9, 3)])
def test_steps_bound_the_batches(factored, steps, taken):
    assert len(finetune(factored, iter(batches(3)), distance(factored), steps=steps)) == taken


def test_a_model_without_compressed_layers_is_refused():
    with pytest.raises(InputError, match="no compressed layer that can be trained"):
        finetune(network(), batches(1), distance)


def test_a_loss_that_is_not_finite_spoils_no_factor(factored):
    before = [parameter.clone() for parameter in factored.parameters()]
    with pytest.raises(InputError, match="the loss of step 1 is nan; lower the rate"):
        finetune(factored, batches(1), lambda outputs, batch: outputs.sum() * torch.nan)
    assert all(torch.equal(was, now) for was, now in zip(before, factored.parameters(), strict=True))


def test_no_batches_are_refused(factored):
    with pytest.raises(InputError, match="there are no batches"):
        finetune(factored, [], distance(factored))
