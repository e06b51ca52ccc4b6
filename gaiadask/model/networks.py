"""The autoencoder: transformed stars to latents and back.

By default the posterior's mean and the rebuilt values each have a linear path beside the hidden layers. Fitted to the
principal components (`start_linear`), the untrained network is PCA of its width, and the hidden layers, which begin at
nothing, learn only what PCA cannot do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gaiadask.config.presets import Activation, BatchNorm

LOG_VARIANCE_LIMIT = 20.0


class Autoencoder(nn.Module):
    """Encoder q(z | values, condition) and decoder p(values | z, condition), after Kingma & Welling (2014), arXiv:1312.6114.

    n_values: inputs that are rebuilt. n_conditions: inputs given to both sides and not rebuilt (may be 0).
    hidden: widths of the encoder's hidden layers; the decoder has them reversed.
    variational: whether the encoder gives a log-variance too. linear_path: whether there is one beside the hidden layers.
    activation, batch_norm: of the hidden layers; batch_norm "batch" takes a batch's own moments in use too, as a network
    does that is never told `eval()`: a star's latents then depend on the stars beside it.
    sigmoid: whether the rebuilt values go through one.

    >>> network = Autoencoder(n_values=9, n_conditions=3, latents=6, hidden=(32, 32), variational=True)
    >>> mean, log_variance = network.encode(torch.zeros(4, 9), torch.zeros(4, 3))
    >>> tuple(mean.shape), tuple(network.decode(mean, torch.zeros(4, 3)).shape)
    ((4, 6), (4, 9))
    """

    def __init__(
        self,
        n_values: int,
        n_conditions: int,
        latents: int,
        hidden: Sequence[int],
        variational: bool,
        *,
        linear_path: bool = True,
        activation: Activation = "silu",
        batch_norm: BatchNorm = "none",
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        self.n_values, self.n_conditions, self.latents, self.variational = n_values, n_conditions, latents, variational
        self.linear_path, self.sigmoid = linear_path, sigmoid

        def layers(widths: list[int], outputs: int) -> nn.Sequential:
            return _hidden_layers(widths, outputs, activation, batch_norm, start_at_nothing=linear_path)

        self.encoder = layers([n_values + n_conditions, *hidden], latents * (2 if variational else 1))
        self.decoder = layers([latents + n_conditions, *reversed(list(hidden))], n_values)
        if linear_path:
            self.encoder_skip = nn.Linear(n_values + n_conditions, latents)
            self.decoder_skip = nn.Linear(latents + n_conditions, n_values)

    def encode(self, values: Tensor, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance of the posterior, shape (n, latents) each; None for the latter if not variational.

        values: shape (n, n_values), 0 where null. condition: shape (n, n_conditions); its null bits, through the first
        layer's weights, act as learned constants in the place of the values that are null.
        """
        inputs = torch.cat([values, condition], dim=1)
        mean, log_variance = self.encoder(inputs), None
        if self.variational:
            mean, log_variance = mean.chunk(2, dim=1)
            log_variance = log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        return (mean + self.encoder_skip(inputs) if self.linear_path else mean), log_variance

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        """Rebuilt values, shape (n, n_values), of latents z (n, latents) and condition (n, n_conditions)."""
        inputs = torch.cat([z, condition], dim=1)
        values = self.decoder(inputs)
        if self.linear_path:
            values = values + self.decoder_skip(inputs)
        return torch.sigmoid(values) if self.sigmoid else values

    @torch.no_grad()
    def start_linear(self, values: Tensor, noise_scale: float) -> None:
        """Set the linear paths to the principal components of a sample, latents scaled to unit variance, and the
        posterior's first standard deviation to the one that `noise_scale` affords the components.

        values: shape (n, n_values), n at least 2, 0 where null. Latents beyond n_values start at small random weights.
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


class OwnMoments(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) that keeps no running moments: in use as in training
    each batch is standardised by its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 0, correction=0)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.weight + self.bias


def _hidden_layers(
    widths: Sequence[int], outputs: int, activation: Activation, batch_norm: BatchNorm, *, start_at_nothing: bool
) -> nn.Sequential:
    """Linear layers, each normalised where asked for and activated, then a linear layer, its first weights nearly nothing
    where it starts there; else all weights start as Keras starts them (Glorot & Bengio 2010)."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers.append(nn.Linear(before, after))
        if batch_norm != "none":
            layers.append(OwnMoments(after) if batch_norm == "batch" else nn.BatchNorm1d(after))
        layers.append(nn.SiLU() if activation == "silu" else nn.ReLU())
    last = nn.Linear(widths[-1], outputs)
    if start_at_nothing:
        nn.init.normal_(last.weight, std=1e-2 / math.sqrt(widths[-1]))
        nn.init.zeros_(last.bias)
    else:
        for layer in (*layers, last):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers, last)
