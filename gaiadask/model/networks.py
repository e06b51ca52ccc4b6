"""The autoencoder: transformed stars to latents and back.

The posterior's mean and the rebuilt values each have a linear path beside the hidden layers. Fitted to the principal
components (`start_linear`), the untrained network is PCA of its width, and the hidden layers, which begin at nothing,
learn only what PCA cannot do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

LOG_VARIANCE_LIMIT = 20.0


class Autoencoder(nn.Module):
    """Encoder q(z | values, present, condition) and decoder p(values | z, condition), after Kingma & Welling (2014),
    arXiv:1312.6114.

    n_values: inputs that are rebuilt. n_conditions: inputs given to both sides and not rebuilt (may be 0).
    hidden: widths of the encoder's hidden layers; the decoder has them reversed.
    variational: whether the encoder gives a log-variance too.

    >>> network = Autoencoder(n_values=9, n_conditions=3, latents=6, hidden=(32, 32), variational=True)
    >>> mean, log_variance = network.encode(torch.zeros(4, 9), torch.ones(4, 9, dtype=torch.bool), torch.zeros(4, 3))
    >>> tuple(mean.shape), tuple(network.decode(mean, torch.zeros(4, 3)).shape)
    ((4, 6), (4, 9))
    """

    def __init__(self, n_values: int, n_conditions: int, latents: int, hidden: Sequence[int], variational: bool) -> None:
        super().__init__()
        self.n_values, self.n_conditions, self.latents, self.variational = n_values, n_conditions, latents, variational
        n_inputs = 2 * n_values + n_conditions
        self.encoder_skip = nn.Linear(n_inputs, latents)
        self.encoder = _hidden_layers([n_inputs, *hidden], latents * (2 if variational else 1))
        self.decoder_skip = nn.Linear(latents + n_conditions, n_values)
        self.decoder = _hidden_layers([latents + n_conditions, *reversed(list(hidden))], n_values)

    def encode(self, values: Tensor, present: Tensor, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance of the posterior, shape (n, latents) each; None for the latter if not variational.

        values: shape (n, n_values), 0 where null. present: shape (n, n_values), bool. condition: shape (n, n_conditions).
        A null is its bit: through the first layer's weights it acts as a learned constant in the value's place.
        """
        inputs = torch.cat([values, present.to(values.dtype), condition], dim=1)
        raised, linear = self.encoder(inputs), self.encoder_skip(inputs)
        if not self.variational:
            return linear + raised, None
        mean, log_variance = raised.chunk(2, dim=1)
        return linear + mean, log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        """Rebuilt values, shape (n, n_values), of latents z (n, latents) and condition (n, n_conditions)."""
        inputs = torch.cat([z, condition], dim=1)
        return self.decoder_skip(inputs) + self.decoder(inputs)

    @torch.no_grad()
    def start_linear(self, values: Tensor, present: Tensor, noise_scale: float) -> None:
        """Set the linear paths to the principal components of a sample, latents scaled to unit variance, and the
        posterior's first standard deviation to the one that `noise_scale` affords the components.

        values, present: shape (n, n_values), n at least 2. Latents beyond n_values start at small random weights.
        Optimal among linear models for Gaussian data: Tipping & Bishop (1999), doi:10.1111/1467-9868.00196.
        """
        sample = values.double().cpu()
        centre = sample.mean(0)
        variance, vectors = torch.linalg.eigh(torch.cov(sample.T).reshape(self.n_values, self.n_values))
        variance, vectors = variance.flip(0).clamp(min=1e-8), vectors.flip(1)
        k = min(self.latents, self.n_values)
        scale = variance[:k].sqrt()
        whiten = vectors[:, :k] / scale
        for skip in (self.encoder_skip, self.decoder_skip):
            nn.init.normal_(skip.weight, std=1e-3)
            nn.init.zeros_(skip.bias)
        self.encoder_skip.weight[:k].zero_()
        self.encoder_skip.weight[:k, : self.n_values] = whiten.T.to(self.encoder_skip.weight)
        self.encoder_skip.bias[:k] = -(centre @ whiten).to(self.encoder_skip.bias)
        self.decoder_skip.weight[:, :k] = (vectors[:, :k] * scale).to(self.decoder_skip.weight)
        self.decoder_skip.bias.copy_(centre)
        last = self.encoder[-1]
        if self.variational and isinstance(last, nn.Linear):
            ratio = (noise_scale**2 / (noise_scale**2 + variance[:k])).log()
            last.bias[self.latents : self.latents + k] = ratio.to(last.bias)


def _hidden_layers(widths: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear and SiLU alternating, then a linear layer whose first weights are nearly nothing."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.SiLU()]
    last = nn.Linear(widths[-1], outputs)
    nn.init.normal_(last.weight, std=1e-2 / math.sqrt(widths[-1]))
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
