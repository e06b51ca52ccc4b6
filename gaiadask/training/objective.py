"""What training minimises, at which rate, and how a network is rated on validation stars in between."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gaiadask.config.presets import LIKELIHOODS, ReconstructionLoss
from gaiadask.config.sections import ModelConfig
from gaiadask.errors import DataError
from gaiadask.inputs.transform import GUESS_LIMIT, Transform
from gaiadask.model.losses import Loss, ReconstructionTerm, active_units, negative_elbo, noise_scale, sample_posterior
from gaiadask.model.networks import Autoencoder, Posterior
from gaiadask.model.star_model import BATCH_ROWS
from gaiadask.training.batches import Batch

ONE_SIGMA = 0.6827


VALIDATION_SEED = 20_240_501


class Objective(NamedTuple):
    """What is minimised, as the configuration and the transform make it.

    scale: of the squared errors of "mse" and "weighted-mse", shape (n_values,); of a likelihood each star has its own.
    """

    kind: ReconstructionLoss
    noise_scale: float
    error_share: float
    tail_from: float
    scale: Tensor

    @classmethod
    def of(cls, config: ModelConfig, transform: Transform, device: torch.device) -> Objective:
        """Raises DataError where a column to be weighted by its IQR has none."""
        scale = [1.0] * transform.n_values
        if config.loss == "weighted-mse":
            named = config.column_weights
            spread = list(zip(transform.value_columns, transform.spread, strict=True))
            if flat := [name for name, width in spread if not width and name not in named]:
                raise DataError(
                    f"column(s) {flat} have quartiles that are equal, so that one over the IQR is no weight: give them one in "
                    "model.column_weights"
                )
            scale = [named[name] ** -0.5 if name in named else width for name, width in spread]
        return cls(config.loss, config.noise_scale, config.error_share, config.tail_from, torch.tensor(scale, device=device))

    @property
    def unit(self) -> float:
        """What the loss is multiplied with before its gradient is taken. A likelihood's gradient in units of the squared
        noise scale does not depend on that scale, and a value whose scale is the floor weighs what it would if all had it."""
        return self.noise_scale**2 if self.kind in LIKELIHOODS else 1.0

    def __call__(
        self, stars: Batch, rebuilt: Tensor, mean: Tensor, log_variance: Tensor | None, kl_weight: float, free_bits: float = 0.0
    ) -> Loss:
        likely = self.kind in LIKELIHOODS
        scale = noise_scale(stars.sigma, self.noise_scale, self.error_share) if likely else self.scale
        term = ReconstructionTerm(self.kind, scale, self.tail_from)
        return negative_elbo(stars.values, rebuilt, stars.present, Posterior(mean, log_variance), term, kl_weight, free_bits)


class Validation(NamedTuple):
    """Of validation stars. loss: reconstruction + final KL weight * KL, nats a star. median_error: shape (n_values,), of
    stars rebuilt from the posterior's mean, in the transform's unit. latents: kl, mean and std of each."""

    loss: float
    reconstruction: float
    kl: float
    median_error: list[float]
    active_units: int
    latents: list[dict[str, float]]


@torch.inference_mode()
def validate(network: Autoencoder, stars: Batch, objective: Objective, kl_weight: float) -> Validation:
    """Rate the network on `stars` (at least one): the ELBO from one draw a star, always the same, the rest from the mean.

    Free bits are for training alone: the loss told here is the ELBO itself.
    """
    network.eval()
    noise = torch.Generator(device=stars.values.device).manual_seed(VALIDATION_SEED)
    means, log_variances, drawn, rebuilt = [], [], [], []
    for first in range(0, len(stars), BATCH_ROWS):
        batch = Batch(*(part[first : first + BATCH_ROWS] for part in stars))
        mean, log_variance = network.encode(batch.values, batch.condition)
        means.append(mean)
        log_variances.append(log_variance)
        drawn.append(network.decode(sample_posterior(mean, log_variance, noise), batch.condition))
        rebuilt.append(network.decode(mean, batch.condition))
    mean = torch.cat(means)
    log_variance = torch.cat([v for v in log_variances if v is not None]) if network.shape.variational else None
    loss = objective(stars, torch.cat(drawn), mean, log_variance, kl_weight)
    error = (stars.values - torch.cat(rebuilt)).abs().masked_fill(~stars.present, math.nan)
    deviation = mean.std(0, correction=0)
    return Validation(
        loss=loss.total.item(),
        reconstruction=loss.reconstruction.item(),
        kl=loss.kl.item(),
        # A column without a value among the stars has no error to speak of.
        median_error=error.nanmedian(0).values.nan_to_num().tolist(),
        active_units=active_units(mean),
        latents=[
            {"kl": k, "mean": m, "std": s}
            for k, m, s in zip(loss.kl_per_latent.tolist(), mean.mean(0).tolist(), deviation.tolist(), strict=True)
        ],
    )


@torch.inference_mode()
def value_errors(network: Autoencoder, transform: Transform, stars: Batch) -> dict[str, dict[str, Any]]:
    """How well values are known, by name, in the network's unit: ONE_SIGMA of `stars` are as near to the truth.

    "rebuilt": the error of a star's own values. "hidden": of the values of each null group, guessed for stars that have
    them as if they had not: hidden from the encoder, and decoded as if nothing were null. A guess counts for what it is
    worth: it is taken as it is, or, where that is nearer, as offset + slope * guess by least squares; `error` is what is then
    left: of a value that nothing tells of, about the width of the column. A value without stars to tell of it is left out.
    """
    network.eval()
    rebuilt = network.decode(network.encode(stars.values, stars.condition)[0], stars.condition)
    errors: dict[str, dict[str, Any]] = {"rebuilt": {}, "hidden": {}}
    for i, name in enumerate(transform.value_names):
        there = stars.present[:, i]
        if there.any():
            errors["rebuilt"][name] = _one_sigma((rebuilt - stars.values)[there, i])
    first = transform.n_conditions - len(transform.null_groups)
    for bit, group in enumerate(transform.null_groups, start=first):
        columns = [i for name in group if name in transform.free for i in transform.slots[name].numbers]
        having = torch.nonzero(stars.condition[:, bit] == 0).flatten()
        values, condition = stars.values[having], stars.condition[having]
        values[:, columns] = 0
        condition[:, bit] = 1
        z = network.encode(values, condition)[0]
        condition[:, first:] = 0
        guessed = network.decode(z, condition)
        for i in columns:
            there = stars.present[having, i]
            if there.sum() > 2:
                name, limit = transform.value_names[i], GUESS_LIMIT * transform.spread[i]
                errors["hidden"][name] = _worth(guessed[there, i].clamp(-limit, limit), stars.values[having, i][there])
    return errors


def _worth(guess: Tensor, truth: Tensor) -> dict[str, float]:
    about = guess - guess.mean()
    slope = float((about * truth).sum() / about.square().sum().clamp(min=1e-12))
    offset = float(truth.mean() - slope * guess.mean())
    plain, drawn_in = _one_sigma(guess - truth), _one_sigma(offset + slope * guess - truth)
    if plain <= drawn_in:
        return {"offset": 0.0, "slope": 1.0, "error": plain}
    return {"offset": offset, "slope": slope, "error": drawn_in}


def _one_sigma(errors: Tensor) -> float:
    return float(np.quantile(errors.abs().cpu().numpy(), ONE_SIGMA))
