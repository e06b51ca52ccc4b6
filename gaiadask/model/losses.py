"""What training minimises: the negative evidence lower bound of a star, in nats, its two terms kept apart."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Loss(NamedTuple):
    """Means over a batch.

    total: what is minimised, reconstruction + kl_weight * kl. reconstruction: minus log-likelihood of the present values,
    nats a star. kl_per_latent: shape (latents,), nats a star; zeros without a posterior.
    """

    total: Tensor
    reconstruction: Tensor
    kl_per_latent: Tensor

    @property
    def kl(self) -> Tensor:
        """Nats a star, over all latents."""
        return self.kl_per_latent.sum()


def noise_scale(sigma: Tensor, floor: float, error_share: float) -> Tensor:
    """The likelihood's standard deviation of each value, max(floor, error_share * sigma), shape as sigma.

    sigma: the catalogue's own error of each value in the unit of the values, shape (n, n_values), 0 where unknown; shape
    (n, 0), errors not asked for, gives the floor alone, shape (1, 1).
    """
    return torch.clamp(error_share * sigma, min=floor) if sigma.shape[1] else sigma.new_full((1, 1), floor)


def gaussian_nll(values: Tensor, rebuilt: Tensor, present: Tensor, scale: Tensor) -> Tensor:
    """Minus log N(values | rebuilt, scale^2), summed over the present values, shape (n,), nats.

    values, rebuilt, present: shape (n, n_values); scale: that shape, or one that stretches to it. The scale is given, not
    learned: a learned one is as content to call a column noise as to encode it (Rybkin et al. 2021, arXiv:2006.13202, on
    what the scale does).
    """
    nll = 0.5 * ((values - rebuilt) / scale) ** 2 + scale.log() + 0.5 * math.log(2 * math.pi)
    return (nll * present).sum(1)


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of each latent, shape (n, latents), nats.

    Kingma & Welling (2014), arXiv:1312.6114, appendix B.
    """
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)


def negative_elbo(
    values: Tensor,
    rebuilt: Tensor,
    present: Tensor,
    mean: Tensor,
    log_variance: Tensor | None,
    *,
    scale: Tensor,
    kl_weight: float,
) -> Loss:
    """The loss of a batch; `rebuilt` is decoded from a sample of the posterior (vae) or from the code (autoencoder).

    values, rebuilt, present: shape (n, n_values); scale: as `gaussian_nll` takes it. mean, log_variance: shape
    (n, latents). Without a log_variance there is no KL, and the loss is the masked squared error in units of 2 scale^2,
    plus a constant.
    """
    reconstruction = gaussian_nll(values, rebuilt, present, scale).mean()
    kl = torch.zeros_like(mean[0]) if log_variance is None else kl_to_standard_normal(mean, log_variance).mean(0)
    return Loss(reconstruction + kl_weight * kl.sum(), reconstruction, kl)


def sample_posterior(mean: Tensor, log_variance: Tensor | None, generator: torch.Generator) -> Tensor:
    """A draw z = mean + sigma * noise, shape (n, latents), differentiable in both; the mean where there is no posterior."""
    if log_variance is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + torch.exp(0.5 * log_variance) * noise


def kl_weight(rows_seen: int, budget_rows: int, warmup: float, final: float) -> float:
    """Weight of the KL term: grows linearly from 0 to `final` over the first `warmup` (share) of the budget.

    Warm-up keeps latents from being dropped before the decoder uses them: Sonderby et al. (2016), arXiv:1602.02282.
    """
    return final if warmup <= 0 else final * min(1.0, rows_seen / (warmup * budget_rows))


def active_units(means: Tensor) -> int:
    """Latents in use: variance of the posterior's mean over stars above 0.01 (Burda et al. 2016, arXiv:1509.00519)."""
    return int((means.var(0) > 0.01).sum())
