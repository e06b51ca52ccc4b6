"""How many bits each latent gets: by what its steps cost in the rebuilt values, so that no bit would do more good elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gaiadask.config.presets import MOST_BITS
from gaiadask.model.losses import noise_scale
from gaiadask.model.networks import Autoencoder
from gaiadask.training.codes import Batch
from gaiadask.training.group import Group
from gaiadask.training.objective import Objective

RATED_STARS = 8_192
"""Validation stars that a latent's precision is measured on, at most: it is known to about a hundredth then, and a bit is a factor of 2."""
_PROBE = 2.0**-8
"""How far each latent is moved to see what that does: half a step of eight bits."""
_LEAST_PRECISE = 1e6


@torch.inference_mode()
def latent_precisions(network: Autoencoder, stars: Batch, objective: Objective) -> list[float]:
    """How far each latent may be off until it changes the rebuilt values by their noise (the decoder's scale), shape (latents,).

    For a latent that the decoder does not use, a number far above its range.
    """
    network.eval()
    few = Batch(*(part[:RATED_STARS] for part in stars))
    scale = noise_scale(few.sigma, objective.noise_scale, objective.error_share)
    z = network.encode(few.values, few.condition).mean
    rebuilt = network.decode(z, few.condition)
    precisions = []
    for latent in range(network.shape.latents):
        moved = z.clone()
        moved[:, latent] += _PROBE
        # The mean, not the mean square: that of few stars at the edge would outweigh all others.
        change = ((network.decode(moved, few.condition) - rebuilt).abs() / scale * few.present).mean(0)
        slope = float(change.square().sum().sqrt()) / _PROBE
        precisions.append(1 / max(slope, 1 / _LEAST_PRECISE))
    return precisions


def allocated_bits(precisions: Sequence[float], bits: int) -> list[int]:
    """Bits of each latent, of a budget a star: each goes to the latent whose step is then the largest beside its precision.

    So steps end up as nearly as whole bits allow in the ratio of the precisions, and a latent whose whole range (2) is below that has
    none: reverse water-filling (Cover and Thomas 2006, section 10.3.3), with log2(range / precision) as what a latent is worth.

    >>> allocated_bits([0.01, 0.02, 4.0], 11)
    [6, 5, 0]
    """
    worth = -np.log2(np.array(precisions))
    given = np.zeros(len(worth), np.int64)
    for _ in range(bits):
        given[np.argmax(np.where(given < MOST_BITS, worth - given, -np.inf))] += 1
    return [int(each) for each in given]


def reallocate(network: Autoencoder, stars: Batch, objective: Objective, group: Group) -> None:
    """Set the network's bits by its latents' precisions on validation stars, on every rank as on rank 0."""
    given = allocated_bits(latent_precisions(network, stars, objective), network.shape.bits)
    network.bits.copy_(torch.tensor(given))
    group.broadcast([network.bits])
