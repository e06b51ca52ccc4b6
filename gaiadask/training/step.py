"""One step of the optimiser."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gaiadask.config.model import ModelConfig
from gaiadask.config.sections import TrainingConfig
from gaiadask.inputs.transform import Transform
from gaiadask.model.files import new_network
from gaiadask.model.flow import Flow
from gaiadask.model.losses import Loss, Whole
from gaiadask.model.networks import Autoencoder
from gaiadask.training.adam import Adam
from gaiadask.training.batches import Share
from gaiadask.training.group import Group
from gaiadask.training.objective import Objective
from gaiadask.training.schedule import kl_weight, learning_rate

FIRST_MOMENT_DECAY = 0.9
"""beta1 of Adam, its authors' value; beta2 is training.second_moment_decay."""
SHOWN_NULL_SHARE = 0.5
"""Share of stars whose null bits the decoder sees: it has to learn both, to rebuild as it was and as if nothing were null."""


@dataclass(frozen=True, eq=False)
class Learner:
    """A network and what changes its weights.

    noise: draws the posterior's samples and which stars show their null bits. null_bits: how many of a condition's last numbers
    are null bits.
    """

    network: Autoencoder | Flow
    optimiser: Adam
    objective: Objective
    noise: torch.Generator
    null_bits: int
    model: ModelConfig
    training: TrainingConfig


def new_learner(transform: Transform, model: ModelConfig, training: TrainingConfig, device: torch.device, bits: int = 0) -> Learner:
    """An untrained network and its optimiser. bits: of a star, where latents are rounded.

    Raises:
        DataError: a column that is to be weighted by its interquartile range has none.
    """
    torch.manual_seed(training.seed)
    network = new_network(transform, model, bits).to(device)
    betas = (FIRST_MOMENT_DECAY, training.second_moment_decay)
    objective = Objective.of(model, transform, device)
    noise = torch.Generator(device=device)
    return Learner(network, Adam(network.parameters(), betas), objective, noise, len(transform.null_groups), model, training)


def kl_weight_now(learner: Learner, rows_seen: int) -> float:
    """Weight of the KL term once `rows_seen` stars have been shown."""
    return kl_weight(rows_seen, learner.training.rows_seen, learner.training.kl_warmup, learner.model.kl_weight)


def step(learner: Learner, share: Share, rows_seen: int, group: Group) -> Loss:
    """Change the weights by one batch, of which this rank has a share; returns the share's part of the loss before the change.

    rows_seen: stars shown before it, which set the learning rate and the KL weight.
    """
    network, optimiser, training = learner.network, learner.optimiser, learner.training
    network.train()
    _seed_noise(learner, rows_seen)
    loss = _loss(learner, share, kl_weight_now(learner, rows_seen), group)
    optimiser.zero_gradients()
    (loss.total * learner.objective.unit).backward()
    group.sum_gradients(network)
    if training.gradient_norm:
        torch.nn.utils.clip_grad_norm_(network.parameters(), training.gradient_norm)
    optimiser.step(learning_rate(rows_seen, training))
    return loss


def _seed_noise(learner: Learner, rows_seen: int) -> None:
    """Begin the noise anew, with each batch: so a rank that resumes at any of them draws what an unbroken one draws."""
    seeds = np.random.SeedSequence([learner.training.seed, rows_seen])
    learner.noise.manual_seed(int(seeds.generate_state(1)[0]))


def _loss(learner: Learner, share: Share, weight: float, group: Group) -> Loss:
    stars, places = share
    rows, latents = learner.training.batch_rows, learner.network.shape.latents
    # Drawn for the whole batch: a star's noise does not depend on who has it.
    noise = torch.randn(rows, latents, generator=learner.noise, device=stars.values.device).index_select(0, places)
    shown = None if isinstance(learner.network, Flow) else _decoder_condition(learner, share)
    whole = Whole(rows, group.all_sum)
    return learner.objective.of_network(learner.network, stars, noise, weight, learner.model.free_bits, whole, shown)


def _decoder_condition(learner: Learner, share: Share) -> Tensor:
    """The condition, half of the stars as if nothing were null.

    So a star that lacks values is also rebuilt the way complete stars are, and its latents mean the same as those of complete stars:
    `decode(..., impute=True)` relies on that for the values that it lacks.
    """
    bits, (stars, places) = learner.null_bits, share
    if not bits:
        return stars.condition
    drawn = torch.rand(learner.training.batch_rows, 1, generator=learner.noise, device=stars.condition.device)
    shown = drawn.index_select(0, places) < SHOWN_NULL_SHARE
    return torch.cat([stars.condition[:, :-bits], stars.condition[:, -bits:] * shown], dim=1)
