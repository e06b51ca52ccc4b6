"""How far values are from the truth: rebuilt ones, and those that are guessed while they are hidden from the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaiadask.inputs.transform import Transform
from gaiadask.model.card import IMPUTED_DRAWS, ONE_SIGMA, TWO_SIGMA, HiddenValue, ValueErrors
from gaiadask.model.flow import Flow
from gaiadask.model.networks import Autoencoder
from gaiadask.training.codes import Batch

Floats = NDArray[np.float64]

FEWEST_HIDDEN = 50
"""Validation stars with a value of which its guess can be rated: of fewer, the outermost of IMPUTED_DRAWS quantiles would be one star."""
_ROWS_A_GUESS, _MOST_GUESSES = 100, 16
"""Stars for each guess whose errors are given apart, at least, and how many of these there are at most. Not tuned."""


@torch.inference_mode()
def value_errors(network: Autoencoder | Flow, transform: Transform, stars: Batch) -> ValueErrors:
    """How far values are from the truth, by name and in the network's unit; a value with too few stars to rate it on is left out.

    rebuilt: a star's own values, decoded from its latents. hidden: the values of each null group, of stars that have them, while they are
    hidden from the model (`hidden`).
    """
    network.eval()
    rebuilt = network.decode(network.mean(stars.values, stars.condition), stars.condition)
    own: dict[str, float] = {}
    for i, name in enumerate(transform.value_names):
        present = stars.present[:, i]
        if present.any():
            one, two = np.quantile((rebuilt - stars.values)[present, i].abs().cpu().numpy(), (ONE_SIGMA, TWO_SIGMA))
            own[name] = float(max(one, two / 2))
    guesses: dict[str, HiddenValue] = {}
    for group in range(len(transform.null_groups)):
        guesses |= _rated_guesses(network, transform, stars, group)
    return ValueErrors(rebuilt=own, hidden=guesses)


def hidden(transform: Transform, stars: Batch, group: int) -> Batch:
    """The stars that have the values of a null group, without these: each lacks what it lacks, the group, and what one of the stars that
    lack the group lacks too, since values are often null together.

    `values` are 0 where they are hidden, and `present` tells which the star has in truth.
    """
    first = transform.first_null_bit
    bits = stars.condition[:, first:]
    having, lacking = (torch.nonzero(bits[:, group] == bit).flatten() for bit in (0, 1))
    without = stars.rows(having)
    without.condition[:, first + group] = 1
    if len(lacking):
        like = lacking[torch.arange(len(having), device=lacking.device) % len(lacking)]
        without.condition[:, first:] = torch.maximum(without.condition[:, first:], bits[like])
    for bit, numbers in enumerate(transform.null_numbers, start=first):
        columns = list(numbers)
        without.values[:, columns] = without.values[:, columns] * (without.condition[:, bit : bit + 1] == 0)
    return without


def _rated_guesses(network: Autoencoder | Flow, transform: Transform, stars: Batch, group: int) -> dict[str, HiddenValue]:
    without, first = hidden(transform, stars, group), transform.first_null_bit
    having = stars.condition[:, first + group] == 0
    z = network.mean(without.values, without.condition)
    without.condition[:, first:] = 0
    guessed = network.decode(z, without.condition)
    return _rated(transform, transform.null_numbers[group], guessed, stars.values[having], without.present)


def _rated(transform: Transform, numbers: Sequence[int], guessed: Tensor, truth: Tensor, present: Tensor) -> dict[str, HiddenValue]:
    """Of the values of one null group, by name, what they are beside their guesses; all shape (n, n_values)."""
    records: dict[str, HiddenValue] = {}
    rows = torch.nonzero(present[:, list(numbers)].all(1)).flatten()
    if len(rows) >= FEWEST_HIDDEN:
        for i in numbers:
            guess, value = (each[rows, i].double().cpu().numpy() for each in (guessed, truth))
            records[transform.value_names[i]] = _Table(guess, value).record(guess[:IMPUTED_DRAWS], value[:IMPUTED_DRAWS])
    return records


class _Table:
    """Quantiles of the errors of guesses, of groups of stars by their guess."""

    def __init__(self, guess: Floats, truth: Floats) -> None:
        groups = np.array_split(np.argsort(guess, kind="stable"), min(max(len(guess) // _ROWS_A_GUESS, 1), _MOST_GUESSES))
        levels = (np.arange(IMPUTED_DRAWS) + 0.5) / IMPUTED_DRAWS
        at = np.array([np.median(guess[group]) for group in groups])
        # Within groups, by least squares: a guess that says nothing would add its own scatter to that of the values.
        own, value = (np.concatenate([each[group] - each[group].mean() for group in groups]) for each in (guess, truth))
        self.slope = float(np.clip((own * value).sum() / max((own * own).sum(), 1e-12), 0, 1))
        self.guesses, first = np.unique(at, return_index=True)
        self.errors = np.stack([np.quantile((truth - self.slope * guess)[groups[i]], levels) for i in first])
        self.ends = float(guess.min()), float(guess.max())

    def record(self, guess: Floats, truth: Floats) -> HiddenValue:
        """As the card has it. guess, truth: of the stars that draws are taken as."""
        errors = np.stack([np.interp(guess, self.guesses, level) for level in self.errors.T])
        below = (errors < truth - self.slope * guess).sum(0)
        ranks = np.argsort(np.argsort(below, kind="stable"))
        return HiddenValue(
            guesses=tuple(map(_short, self.guesses)),
            lowest=self.ends[0],
            highest=self.ends[1],
            slope=_short(self.slope),
            errors=tuple(tuple(map(_short, row)) for row in self.errors),
            draws=tuple(ranks.tolist()),
        )


def _short(number: float) -> float:
    return float(f"{number:.6g}")
