"""Adam without torch's class: the same steps, and moments that go into a checkpoint and come back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gaiadask.training.adam import Adam


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def gradients(module: nn.Module, number: int) -> None:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(number))
    module(x).square().mean().backward()


@pytest.mark.slow
def test_steps_are_those_of_torch() -> None:
    ours, theirs = network(), network()
    own, reference = Adam(ours.parameters(), (0.9, 0.99)), torch.optim.Adam(theirs.parameters(), betas=(0.9, 0.99), fused=True)
    for number in range(5):
        rate = 0.1 / (1 + number)
        own.zero_gradients()
        gradients(ours, number)
        own.step(rate)
        reference.zero_grad()
        gradients(theirs, number)
        reference.param_groups[0]["lr"] = rate
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    stored = reference.state_dict()["state"]
    assert all(torch.equal(stored[number][name], tensor) for number, m in own.moments.items() for name, tensor in m.items())


def test_parameters_without_a_gradient_stay() -> None:
    module = network()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    optimiser = Adam(module.parameters())
    module[0].requires_grad_(False)
    gradients(module, 0)
    optimiser.step(0.1)
    changed = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    assert changed == [False, False, True, True] and sorted(optimiser.moments) == [2, 3]


def test_moments_of_another_network_are_refused() -> None:
    module = network()
    optimiser = Adam(module.parameters())
    gradients(module, 0)
    optimiser.step(0.1)
    with pytest.raises(ValueError, match="parameter 0 are of another shape"):
        Adam(nn.Linear(5, 6).parameters()).load(optimiser.moments)
