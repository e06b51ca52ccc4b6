"""The order of a pass: each star once, another order for each seed and pass, no sign of the numbers in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gaiadask.training.order import Order


def order(n: int, seed: int = 0, pass_number: int = 0) -> torch.Tensor:
    return Order.of(n, seed, pass_number)(torch.arange(n))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 4_000), seed=st.integers(0, 2**40), pass_number=st.integers(0, 10**6))
def test_each_star_comes_once(n: int, seed: int, pass_number: int) -> None:
    assert torch.equal(order(n, seed, pass_number).sort().values, torch.arange(n))


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 2**41), first=st.integers(0, 2**41))
def test_any_part_of_a_huge_order_can_be_told_by_itself(n: int, first: int) -> None:
    places = torch.arange(first % n, min(first % n + 1_000, n))
    numbers = Order.of(n, 1, 2)(places)
    assert ((numbers >= 0) & (numbers < n)).all()
    assert len(numbers.unique()) == len(places)
    assert torch.equal(Order.of(n, 1, 2)(places[-1:]), numbers[-1:])


def test_it_is_told_by_seed_and_pass() -> None:
    assert torch.equal(order(1_000, 3, 4), order(1_000, 3, 4))
    same = [float((order(1_000, 3, 4) == order(1_000, *other)).float().mean()) for other in ((3, 5), (4, 4), (4, 3))]
    assert max(same) < 0.02


@pytest.mark.slow
def test_every_permutation_of_a_few_stars_is_as_likely() -> None:
    """24 orders of four stars, 4,800 passes: chi-square of 23 degrees of freedom, beyond 49.7 once in a thousand."""
    found = [tuple(order(4, pass_number=i).tolist()) for i in range(4_800)]
    counts = np.array([found.count(each) for each in set(found)])
    assert len(counts) == 24
    assert ((counts - 200.0) ** 2 / 200).sum() < 80


def test_neighbours_are_torn_apart() -> None:
    """Each batch has stars from the whole catalogue, as many as chance has: in 64 stretches of it, and of stars that are neighbours."""
    n, batch = 250_000, 1_000
    batches = order(n).reshape(-1, batch)
    counts = torch.stack([torch.bincount(each * 64 // n, minlength=64) for each in batches]).double()
    expected = batch / 64 * (1 - 1 / 64)
    assert abs(float(counts.var(0).mean()) / expected - 1) < 0.1
    neighbours = (batches.sort(dim=1).values.diff(dim=1) == 1).double().mean()
    assert abs(float(neighbours) * n / batch - 1) < 0.1
    steps = order(n).double().diff()
    assert abs(float(torch.corrcoef(torch.stack([steps[1:], steps[:-1]]))[0, 1]) + 0.5) < 0.01  # as of independent numbers
