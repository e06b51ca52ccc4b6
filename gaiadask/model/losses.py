"""What training minimises: the negative evidence lower bound of a star, in nats, as its two terms; and the losses of 2020."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gaiadask.config.presets import TAIL_FROM, ReconstructionLoss
from gaiadask.model.networks import Posterior, within_steps

# Probabilities are cut to this distance from 0 and 1, as Keras does.
PROBABILITY_MARGIN = 1e-7


# The polynomial of `log_scaled_k1`: where it begins to hold, and its terms, of powers of 2 / x.
_K1_FROM = 2.0
_K1_TERMS = (1.25331414, 0.23498619, -0.03655620, 0.01504268, -0.00780353, 0.00325614, -0.00068245)


class Whole(NamedTuple):
    """The batch of which some stars are a share, others having the rest.

    rows: stars of the batch. all_sum: the sum of a tensor over all shares, without gradient.
    """

    rows: int
    all_sum: Callable[[Tensor], Tensor]


class Loss(NamedTuple):
    """Means over a batch; of a share of one, what the share adds to them.

    total: what is minimised, reconstruction + kl_weight * kl, in which no latent's KL counts less than the free bits.
    reconstruction: for a likelihood minus log-likelihood of the present values, nats a star; for the other losses their mean
    over the present values. kl_per_latent: shape (latents,), nats a star; zeros without a posterior.
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

    What the shares change, on 190 k mock train stars, 1.5 M shown (Gaussian likelihood, layers of 256), test stars: median
    |error| / IQR, mean and worst of the 14 columns beside position, their worst Kolmogorov-Smirnov distance, and the mean
    share of values within 1 sigma:

    | floor, share | 6 latents | 8 latents |
    | --- | --- | --- |
    | .01, 0 | .0241 .053 .027 .312 | .0031 .016 .004 .687 |
    | .003, 0 | .0240 .053 .024 .315 | .0026 .015 .004 .709 |
    | **.003, .03** | .0233 .050 .025 .328 | .0027 .015 .004 .709 |
    | .003, .1 | .0235 .073 .084 .335 | .0026 .015 .004 .709 |
    | .003, .3 | .0260 .117 .144 .372 | .0027 .016 .004 .708 |

    So with enough latents the floor alone counts. With too few, a share rebuilds what the catalogue knows poorly (parallaxes
    first) less precisely and the rest more precisely; from three times the default on luminosities get worse for it.

    sigma: the catalogue's own error of each value in the unit of the values, shape (n, n_values), 0 where unknown; shape
    (n, 0), errors not asked for, gives the floor alone, shape (1, 1).
    """
    return torch.clamp(error_share * sigma, min=floor) if sigma.shape[1] else sigma.new_full((1, 1), floor)


def gaussian_nll(values: Tensor, rebuilt: Tensor, present: Tensor, scale: Tensor) -> Tensor:
    """Minus log N(values | rebuilt, scale^2), summed over the present values, shape (n,), nats.

    values, rebuilt, present: shape (n, n_values); scale: that shape, or one that broadcasts to it. The scale is given, not
    learned: with a learned one, to call a column noise costs no more than to encode it (Rybkin et al. 2021, arXiv:2006.13202,
    on what the scale does).
    """
    nll = 0.5 * ((values - rebuilt) / scale) ** 2 + scale.log() + 0.5 * math.log(2 * math.pi)
    return (nll * present).sum(1)


def hyperbolic_nll(values: Tensor, rebuilt: Tensor, present: Tensor, scale: Tensor, tail_from: float) -> Tensor:
    """Minus the log-density of a symmetric hyperbolic distribution, summed over the present values, shape (n,), nats.

    Where `scale` is well below `tail_from`, it is a Gaussian's of that standard deviation up to errors of `tail_from` (for
    scale = 0.1 tail_from the deviation is larger by 0.7 %; for scale = tail_from nothing of the Gaussian is left); beyond, it
    grows with the error instead of its square, with the slope tail_from / scale^2. The density is
    exp(-k^2 sqrt(1 + (error / tail_from)^2)) / (2 tail_from K_1(k^2)) with k = tail_from / scale (Barndorff-Nielsen 1977,
    doi:10.1098/rspa.1977.0041). With too few latents some stars cannot be rebuilt, and under a Gaussian the few worst of
    them have most of the gradient.

    values, rebuilt, present, scale: as `gaussian_nll` takes them.
    """
    error = values - rebuilt
    # k^2 (sqrt(1 + t^2) - 1), t = error / tail_from, without the difference of two nearly equal numbers.
    fall = (error / scale) ** 2 / (1 + torch.sqrt(1 + (error / tail_from) ** 2))
    norm = math.log(2 * tail_from) + log_scaled_k1((tail_from / scale) ** 2)
    return ((fall + norm) * present).sum(1)


def log_scaled_k1(x: Tensor) -> Tensor:
    """ln(exp(x) K_1(x)) of positive x that need no gradient, shape as x; to 5e-7 in float32.

    On a processor torch's own takes a tenth of a training step, so there it is a polynomial where one will do: equation 9.8.8 of
    Abramowitz and Stegun (1964), from x = 2 on.
    """
    if x.dtype != torch.float32 or x.is_cuda or bool((x < _K1_FROM).any()):  # to ask a GPU is to wait for it
        return torch.special.scaled_modified_bessel_k1(x).log()
    t, polynomial = 2 / x, torch.full_like(x, _K1_TERMS[-1])
    for term in _K1_TERMS[-2::-1]:
        polynomial.mul_(t).add_(term)
    return polynomial.log_().sub_(x.log(), alpha=0.5)


def bernoulli_cross_entropy(values: Tensor, rebuilt: Tensor) -> Tensor:
    """Binary cross-entropy of each value, shape (n, n_values), nats; values and rebuilt are taken as probabilities.

    For a value strictly between 0 and 1 it is at least that value's own entropy: unlike for bits, a small loss does not mean a
    good reconstruction, nor a large one a bad one.
    """
    p = rebuilt.clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
    return -(values * p.log() + (1 - values) * (-p).log1p())


class ReconstructionTerm(NamedTuple):
    """Which reconstruction loss, and its parameters. scale: as `gaussian_nll` takes it. tail_from: as `hyperbolic_nll` does."""

    kind: ReconstructionLoss
    scale: Tensor
    tail_from: float = TAIL_FROM


def reconstruction_loss(term: ReconstructionTerm, values: Tensor, rebuilt: Tensor, present: Tensor) -> Tensor:
    """The reconstruction loss of each star, shape (n,). values, rebuilt, present: shape (n, n_values).

    "hyperbolic", "gaussian": `hyperbolic_nll`, `gaussian_nll`. "mse", "weighted-mse": mean over the present values of
    ((values - rebuilt) / scale)^2. "bce": mean over them of `bernoulli_cross_entropy`.
    """
    kind, scale, tail_from = term
    if kind == "hyperbolic":
        return hyperbolic_nll(values, rebuilt, present, scale, tail_from)
    if kind == "gaussian":
        return gaussian_nll(values, rebuilt, present, scale)
    each = bernoulli_cross_entropy(values, rebuilt) if kind == "bce" else ((values - rebuilt) / scale) ** 2
    return (each * present).sum(1) / present.sum(1).clamp(min=1)


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of each latent, shape (n, latents), nats.

    Kingma & Welling (2014), arXiv:1312.6114, appendix B.
    """
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)


def kl_to_prior(posterior: Posterior) -> Tensor:
    """KL of a posterior from what latents follow without a star, of each latent, shape (n, latents), nats.

    Of a uniform one it is the same for every star, the bits that the latent has: log(2 / step), from uniform between -1 and 1.
    """
    mean, log_variance, steps = posterior
    if steps is not None:
        return (2 / steps).log().expand_as(mean)
    assert log_variance is not None
    return kl_to_standard_normal(mean, log_variance)


def negative_elbo(
    values: Tensor,
    rebuilt: Tensor,
    present: Tensor,
    posterior: Posterior,
    term: ReconstructionTerm,
    kl_weight: float,
    free_bits: float = 0.0,
    whole: Whole | None = None,
) -> Loss:
    """The loss of a batch, or of a share of one, which may have no stars.

    Args:
        values, rebuilt, present: shape (n, n_values); `rebuilt` is decoded from a sample of the posterior (vae) or from the
            code (autoencoder).
        posterior: of the same stars; where it is neither normal nor uniform there is no KL.
        term: the reconstruction loss.
        kl_weight: what the KL counts.
        free_bits: nats of KL of each latent that cost nothing, so that a latent worth less than that is not given up (Kingma
            et al. 2016, arXiv:1606.04934, appendix C.8).
        whole: the batch, where these stars are not all of it.
    """
    rows = whole.rows if whole else len(values)
    reconstruction = reconstruction_loss(term, values, rebuilt, present).sum() / rows
    if posterior.log_variance is None and posterior.steps is None:
        return Loss(reconstruction, reconstruction, posterior.mean.new_zeros(posterior.mean.shape[1]))
    kl = priced = kl_to_prior(posterior).sum(0) / rows
    if free_bits:
        of_batch = whole.all_sum(kl) if whole else kl
        priced = torch.where(of_batch > free_bits, kl, free_bits * len(values) / rows)
    return Loss(reconstruction + kl_weight * priced.sum(), reconstruction, kl)


def flow_elbo(log_densities: Tensor, present: Tensor, entropy: Tensor, whole: Whole | None = None) -> Loss:
    """The negative evidence bound of a batch under a flow, or of a share of one.

    With likelihood N(value | rebuilt, scale^2) and the posterior that noise of that scale, added to the values, makes of them: the KL from
    the prior is the negative entropy of the noise minus the log-density of the noisy values, of each latent what is known of its value beyond
    those before it, and the reconstruction is what rebuilding a value to `scale` costs, the same for every network. Noise within a cell in the
    place of it counts the same way.

    log_densities: of values with noise, shape (n, n_values), nats. present: of that shape. entropy: of the noise, nats, of that shape or one
    that broadcasts to it.
    """
    rows = whole.rows if whole else len(present)
    reconstruction = (entropy * present).sum() / rows
    kl = ((-entropy - log_densities) * present).sum(0) / rows
    return Loss(reconstruction + kl.sum(), reconstruction.detach(), kl)


def normal_entropy(scale: Tensor) -> Tensor:
    """Entropy of normal noise of these standard deviations, nats; shape as scale."""
    return scale.log() + 0.5 * math.log(2 * math.pi * math.e)


def sample_posterior(posterior: Posterior, noise: Tensor) -> Tensor:
    """A draw from the posterior, differentiable in it, shape (n, latents); the mean where it is neither normal nor uniform.

    noise: standard normal, of that shape.
    """
    mean, log_variance, steps = posterior
    if steps is not None:
        return within_steps(mean + steps * (torch.special.ndtr(noise) - 0.5), steps)
    return mean if log_variance is None else mean + torch.exp(0.5 * log_variance) * noise


def active_units(means: Tensor) -> int:
    """Latents in use: variance of the posterior's mean over stars above 0.01 (Burda et al. 2016, arXiv:1509.00519)."""
    return int((means.var(0) > 0.01).sum())
