"""What training minimises, and how a network is rated on validation stars in between."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gaiadask.config.model import ModelConfig
from gaiadask.config.presets import LIKELIHOODS, ReconstructionLoss
from gaiadask.errors import DataError
from gaiadask.inputs.transform import Transform
from gaiadask.model.card import LatentSummary
from gaiadask.model.cells import Cells, Drawn
from gaiadask.model.flow import Flow
from gaiadask.model.losses import (
    Loss,
    ReconstructionTerm,
    Whole,
    active_units,
    flow_elbo,
    negative_elbo,
    noise_scale,
    normal_entropy,
    sample_posterior,
)
from gaiadask.model.networks import Autoencoder, Posterior
from gaiadask.training.codes import Batch
from gaiadask.training.group import Group

VALIDATION_SEED = 20_240_501
"""Of the draws from the posterior at each validation: any fixed number will do, so that losses of one network compare."""
CELL_SHARE, WIDEST_SCALE = 0.125, 0.1
"""A likelihood's standard deviation of a value in a cell is this share of the cell's width, but no more than the other: any score in the cell is
right, and those beside it are far from its middle."""


class Objective(NamedTuple):
    """The loss, as the configuration and the transform make it.

    scale: of the squared errors of "mse" and "weighted-mse", shape (n_values,); a likelihood has one for each star instead. cells: of the
    values in which many stars share one.
    """

    kind: ReconstructionLoss
    noise_scale: float
    error_share: float
    tail_from: float
    scale: Tensor
    cells: Cells
    is_flow: bool = False

    @classmethod
    def of(cls, config: ModelConfig, transform: Transform, device: torch.device) -> Objective:
        """The objective of a configuration.

        Raises:
            DataError: a column that is to be weighted by its interquartile range has none.
        """
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
        return cls(
            config.loss,
            config.noise_scale,
            config.error_share,
            config.tail_from,
            torch.tensor(scale, device=device),
            Cells.of(transform.cells).to(device),
            config.preset == "flow",
        )

    @property
    def unit(self) -> float:
        """Factor of the loss before its gradient is taken: the squared noise scale for a likelihood, so that the gradient's size
        does not depend on that scale; else 1. A flow's gradient does not depend on it."""
        return self.noise_scale**2 if self.kind in LIKELIHOODS and not self.is_flow else 1.0

    def of_network(
        self,
        network: Autoencoder | Flow,
        stars: Batch,
        noise: Tensor,
        kl_weight: float = 1.0,
        free_bits: float = 0.0,
        whole: Whole | None = None,
        shown: Tensor | None = None,
    ) -> Loss:
        """The loss of a batch, or of a share of a whole one, under a network.

        noise: standard normal, shape (n, latents), for one draw from each star's posterior. shown: the condition that an autoencoder's
        decoder is given, where it is not the stars' own. A flow has neither weights of its KL nor free bits.
        """
        if isinstance(network, Flow):
            return self._of_flow(network, stars, noise, whole)
        posterior = network.encode(stars.values, stars.condition)
        rebuilt = network.decode(sample_posterior(posterior, noise), stars.condition if shown is None else shown)
        return self(stars, rebuilt, posterior, kl_weight, free_bits, whole)

    def _of_flow(self, network: Flow, stars: Batch, noise: Tensor, whole: Whole | None) -> Loss:
        scale = noise_scale(stars.sigma, self.noise_scale, self.error_share)
        noisy, given = Drawn(torch.addcmul(stars.values, scale, noise), normal_entropy(scale)), None
        if self.cells:
            noisy = self.cells.spread_out(
                stars.values, torch.special.ndtr(noise), noisy._replace(entropy=noisy.entropy.expand_as(noise))
            )
            given = self.cells.put_back(stars.values, noisy.values).masked_fill(~stars.present, 0.0)
        densities = network.log_densities(noisy.values.masked_fill(~stars.present, 0.0), stars.condition, given)
        return flow_elbo(densities, stars.present, noisy.entropy, whole)

    def __call__(
        self,
        stars: Batch,
        rebuilt: Tensor,
        posterior: Posterior,
        kl_weight: float,
        free_bits: float = 0.0,
        whole: Whole | None = None,
    ) -> Loss:
        """The loss of a batch, or of a share of a whole one, of what the network made of it: rebuilt values, and the posterior."""
        likely = self.kind in LIKELIHOODS
        scale = noise_scale(stars.sigma, self.noise_scale, self.error_share) if likely else self.scale
        if likely and self.cells:
            scale = torch.maximum(scale, (CELL_SHARE * self.cells.widths(stars.values)).clamp(max=WIDEST_SCALE))
        term = ReconstructionTerm(self.kind, scale, self.tail_from)
        return negative_elbo(stars.values, rebuilt, stars.present, posterior, term, kl_weight, free_bits, whole)


class Validation(NamedTuple):
    """A network's rating on validation stars.

    loss: reconstruction + final KL weight * KL, nats a star. median_error: of each value, shape (n_values,), of stars rebuilt from
    the posterior's mean (rounded where latents are), in the transform's unit. latent_kl, latent_mean, latent_std: shape (latents,), as in `latents`. Nothing is
    finite where training has diverged.
    """

    loss: float
    reconstruction: float
    kl: float
    median_error: list[float]
    active_units: int
    latent_kl: list[float]
    latent_mean: list[float]
    latent_std: list[float]

    @property
    def latents(self) -> tuple[LatentSummary, ...]:
        """Each latent, in order; all numbers must be finite."""
        columns = zip(self.latent_kl, self.latent_mean, self.latent_std, strict=True)
        return tuple(LatentSummary(kl=kl, mean=mean, std=std) for kl, mean, std in columns)


@torch.inference_mode()
def validate(network: Autoencoder | Flow, stars: Batch, objective: Objective, kl_weight: float, group: Group) -> Validation:
    """Rate the network on `stars` (at least one), of which each rank takes its share: the same rating on all of them, and, but for
    rounding, for any number of them.

    The loss is from one draw a star, always the same, the rest from the mean. Free bits are for training alone: with a likelihood
    this loss is the negative ELBO itself.
    """
    network.eval()
    device = stars.values.device
    own = torch.arange(min(group.rank, len(stars)), len(stars), group.world_size, device=device)
    generator = torch.Generator(device=device).manual_seed(VALIDATION_SEED)
    noise = torch.randn(len(stars), network.shape.latents, generator=generator, device=device).index_select(0, own)
    share, whole = stars.rows(own), Whole(len(stars), group.all_sum)
    sums: list[Tensor] = []
    means, errors = [noise[:0]], [share.values[:0]]
    for first in range(0, len(share), network.rows_at_once):
        rows = slice(first, first + network.rows_at_once)
        batch = Batch(*(part[rows] for part in share))
        loss = objective.of_network(network, batch, noise[rows], kl_weight, whole=whole)
        sums.append(torch.cat([torch.stack([loss.total, loss.reconstruction]), loss.kl_per_latent]))
        means.append(network.mean(batch.values, batch.condition))
        rebuilt = network.decode(means[-1], batch.condition)
        errors.append((batch.values - rebuilt).abs().masked_fill(~batch.present, math.nan))
    none = noise.new_zeros(2 + network.shape.latents)
    total, reconstruction, *kl = group.all_sum(torch.stack([none, *sums]).double().sum(0)).tolist()
    mean, error = group.gather(torch.cat(means)), group.gather(torch.cat(errors))
    return Validation(
        loss=total,
        reconstruction=reconstruction,
        kl=math.fsum(kl),
        # 0 for a column that is null in all of these stars.
        median_error=error.nanmedian(0).values.nan_to_num().tolist(),
        active_units=active_units(mean),
        latent_kl=kl,
        latent_mean=mean.mean(0).tolist(),
        latent_std=mean.std(0, correction=0).tolist(),
    )
