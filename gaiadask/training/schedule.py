"""Learning rate and KL weight over a training's budget of stars shown."""

from __future__ import annotations

import math
from typing import NamedTuple

from gaiadask.config.sections import TrainingConfig

RISE_SHARE = 0.05
"""Share of the budget over which a one-cycle rate rises: long enough for Adam's moments to settle, too short to cost stars."""


class OneCycle(NamedTuple):
    """One cycle of a learning rate, as a factor of its peak: a linear rise, then half a cosine.

    After Smith & Topin (2019), arXiv:1708.07120, with the cosine of Loshchilov & Hutter (2017), arXiv:1608.03983.

    start: the factor at the beginning. rise: how much is added to it by RISE_SHARE of the budget. end: what is added to the
    cosine, which itself ends at 0.
    """

    start: float
    rise: float
    end: float

    def factor(self, share: float) -> float:
        """The factor at this share of the budget."""
        if share < RISE_SHARE:
            return self.start + self.rise * share / RISE_SHARE
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (share - RISE_SHARE) / (1 - RISE_SHARE)))) + self.end


# Two curves, since changing either would change every model, or every prior, that a seed gives. The autoencoder starts at the
# principal components, where a tenth of the peak does no harm, and ends at 0, so that its weights come to rest. A flow starts
# with nearly no rate, as its first gradients are far larger than later ones, and ends above 0: its budget can also end by seconds,
# at a step that is not known beforehand, and that step still learns.
AUTOENCODER_CYCLE = OneCycle(start=0.1, rise=0.9, end=0.0)
FLOW_CYCLE = OneCycle(start=1e-2, rise=1.0, end=1e-4)


def learning_rate_factor(share: float, config: TrainingConfig) -> float:
    """Factor of training.learning_rate at this share of the budget, by training.schedule.

    "step" and "exponential" have the same value at the end of each decay_every.
    """
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "one-cycle":
        return AUTOENCODER_CYCLE.factor(share)
    periods = share / config.decay_every
    # 1e-9: a share that is a whole number of periods but for rounding counts as one.
    return config.decay_factor ** (math.floor(periods + 1e-9) if config.schedule == "step" else periods)


def learning_rate(rows_seen: int, config: TrainingConfig) -> float:
    """Adam's rate once `rows_seen` stars have been shown."""
    return config.learning_rate * learning_rate_factor(rows_seen / config.rows_seen, config)


def kl_weight(rows_seen: int, budget_rows: int, warmup: float, final: float) -> float:
    """Weight of the KL term: grows linearly from 0 to `final` over the first `warmup` (share) of the budget.

    Warm-up keeps latents from being dropped before the decoder uses them: Sonderby et al. (2016), arXiv:1602.02282.
    """
    return final if warmup <= 0 else final * min(1.0, rows_seen / (warmup * budget_rows))
