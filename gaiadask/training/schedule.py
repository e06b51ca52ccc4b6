"""Learning rates over a budget of stars shown."""

from __future__ import annotations

import math

from gaiadask.config.sections import TrainingConfig

LEARNING_RATE_WARMUP = 0.05


def learning_rate_factor(share: float, config: TrainingConfig) -> float:
    """Of training.learning_rate, at this share of the budget, by training.schedule.

    "one-cycle": linear from a tenth to 1, then half a cosine to 0: one cycle of Smith & Topin (2019), arXiv:1708.07120, with
    the cosine of Loshchilov & Hutter (2017), arXiv:1608.03983. "step" and "exponential" come to the same at the end of each
    decay_every.
    """
    if config.schedule == "constant":
        return 1.0
    if config.schedule != "one-cycle":
        periods = share / config.decay_every
        return config.decay_factor ** (math.floor(periods + 1e-9) if config.schedule == "step" else periods)
    if share < LEARNING_RATE_WARMUP:
        return 0.1 + 0.9 * share / LEARNING_RATE_WARMUP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (share - LEARNING_RATE_WARMUP) / (1 - LEARNING_RATE_WARMUP))))
