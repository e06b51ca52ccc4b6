"""Fitting the codec to few stars: what is learned holds for other stars, and is chosen by what it saves in a large catalogue."""

from __future__ import annotations

import numpy as np
import pytest
from code_lengths import bits_of_ours
from codec_stars import mock_stars
from numpy.typing import NDArray

from gaiadask.codec.bounds import tolerances
from gaiadask.codec.card import CELLS, STEPS, CodecCard
from gaiadask.codec.expected import bits_of_categories, bits_of_steps
from gaiadask.codec.fit import fit_codec
from gaiadask.codec.loops import Coordinates
from gaiadask.codec.regression import ENTRIES, FIRST_BENDING, Design, gains
from gaiadask.release.dr2 import DR2

ROWS = 1_000


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("sigma", [0.4, 3.0, 1000.0])
def test_bits_of_steps_are_their_entropy(random: np.random.Generator, sigma: float) -> None:
    steps = np.rint(random.normal(0, sigma, 4 * ROWS)).astype(np.int64)
    shares = np.unique(steps, return_counts=True)[1] / len(steps)
    entropy = -np.sum(shares * np.log2(shares)) if sigma < 10 else np.log2(sigma * np.sqrt(2 * np.pi * np.e))
    assert bits_of_steps(steps, None) / len(steps) == pytest.approx(entropy, abs=0.08)


def test_bits_of_steps_of_many_sizes_whatever_the_levels_zero(random: np.random.Generator) -> None:
    levels = random.integers(0, 12, ROWS).astype(np.int32)
    scale = 8 * np.exp2(levels / 2)
    steps = np.rint(random.normal(0, scale)).astype(np.int64)
    known = np.log2(scale * np.sqrt(2 * np.pi * np.e)).mean()
    for zero in (0, 100):
        assert bits_of_steps(steps, levels + np.int32(zero)) / ROWS == pytest.approx(known, abs=0.2)
    assert bits_of_steps(steps, None) / ROWS > known + 0.3
    assert bits_of_steps(steps[:1], None) == 0


def test_bits_of_categories_count_what_each_pile_must_learn(random: np.random.Generator) -> None:
    flags = (random.random(ROWS) < 0.25).astype(np.int64)
    assert bits_of_categories(flags, 2, None) / ROWS == pytest.approx(0.811, abs=0.05)
    assert bits_of_categories(flags, 2, flags.astype(np.int32)) < 20
    # Levels that say nothing cost what is learned of each.
    assert bits_of_categories(flags, 2, random.integers(0, 32, ROWS).astype(np.int32)) > bits_of_categories(flags, 2, None) + 20
    assert bits_of_categories(flags[:0], 2, None) == bits_of_categories(flags[:0], 2, np.zeros(0, np.int32)) == 0


def test_what_features_seem_to_save_by_chance_is_taken_off(random: np.random.Generator) -> None:
    cells = random.integers(0, ENTRIES, (200, ROWS)).astype(np.uint8)
    left = random.normal(0, 1, ROWS)
    left += np.where(cells[0] < CELLS // 2, 0.5, -0.4)
    left -= left.mean()
    sizes, weights = np.log2(np.abs(left) + 0.25), np.ones(ROWS)
    seeming, expected, elsewhere = (gains(cells, left, sizes, weights, by_chance) for by_chance in (0.0, 1.0, 2.0))
    assert seeming[1:].min() > 0
    assert abs(expected[1:].mean()) < 0.2 * seeming[1:].mean()
    assert np.mean(elsewhere[1:] > 0) < 0.05
    assert elsewhere[0] > 0.01


def _fitted(steps: NDArray[np.uint16], target: NDArray[np.float64], rounds: int) -> NDArray[np.float64]:
    """What is fitted to a target of the stars' steps, once with the least penalty, or with one that is estimated."""
    design = Design(
        Coordinates(steps, steps / STEPS), range(len(steps)), np.arange(steps.shape[1]), np.arange(steps.shape[1]) % 768
    )
    bending = np.full(len(steps), FIRST_BENDING) if rounds > 1 else None
    for _ in range(rounds):
        sums, fitted = design.fit(target, None, bending)
        bending = sums.bending
    return fitted


@pytest.mark.parametrize("waves", [0.0, 1.0])
def test_tables_bend_as_far_as_the_stars_say(random: np.random.Generator, waves: float) -> None:
    steps = random.integers(0, CELLS * STEPS + 1, (6, ROWS)).astype(np.uint16)
    true = steps[0] / STEPS / CELLS + 5 * waves * np.sin(steps[1] / STEPS)
    least, estimated = (np.std(_fitted(steps, true + random.normal(0, 1, ROWS), rounds) - true) for rounds in (1, 3))
    assert estimated < (0.85 if waves else 0.75) * least


def _card(rows: int, catalogue_rows: int) -> CodecCard:
    stars = mock_stars().slice(0, rows)
    return fit_codec(stars, tolerances(DR2, stars.column_names, 0.1, {}), 0.1, DR2, catalogue_rows)


@pytest.mark.slow
def test_few_stars_are_fitted_for_the_catalogue_that_they_are_of() -> None:
    # Of a large catalogue: a null mask follows from others, in piles that so few stars do not fill.
    large = _card(700, 10**8)
    predicted = {code.name for code in large.columns if code.prediction is not None}
    assert {"null:radial_velocity", "ra", "dec"} <= predicted
    # All of a small one: there is one pile, and what is not smaller in bytes is not predicted.
    small = {code.name for code in _card(700, 900).columns if code.prediction is not None}
    assert not any(name.startswith("null:") for name in small)
    # Other stars are as short as a share of the bits without prediction says.
    others = mock_stars().slice(700)
    bits = sum(bits_of_ours(others, large, DR2).values()) / others.num_rows
    alone = large.model_copy(update={"columns": tuple(code.model_copy(update={"prediction": None}) for code in large.columns)})
    assert bits < 0.915 * sum(bits_of_ours(others, alone, DR2).values()) / others.num_rows
    parents = [len(code.prediction.parents) for code in large.columns if code.prediction is not None]
    assert sum(parents) < 4 * len(parents)
