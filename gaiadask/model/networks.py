"""The autoencoder: transformed stars to latents and back.

By default the posterior's mean and the rebuilt values each have a linear path beside the hidden layers. Fitted to the
principal components (`start_linear`), the untrained network is PCA of its width, and the hidden layers, which begin near
zero, learn only what PCA cannot do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gaiadask.config.presets import Activation, BatchNorm

# Stars at once in use. On a processor: the activations of the layers fit into its nearest cache; at 16,384 stars and layers of 128 the
# same network takes half as long again. On a GPU: enough to keep it busy, some 400 MB.
_ROWS_ON_CPU, _ROWS_ON_GPU = 4_096, 131_072
# Of a network whose batches' own moments are part of what the latents are.
_ROWS_OF_MOMENTS = 16_384

# exp() of log-variances within this stays in float32, with room for its square.
LOG_VARIANCE_LIMIT = 20.0


@dataclass(frozen=True)
class NetworkShape:
    """What an autoencoder is built from.

    n_values: inputs that are rebuilt. n_conditions: inputs given to both sides and not rebuilt (may be 0).
    hidden: widths of the encoder's hidden layers; the decoder has them reversed.
    variational: whether the encoder gives a log-variance too. linear_path: whether there is one beside the hidden layers.
    activation, batch_norm: of the hidden layers; batch_norm "batch" takes a batch's own moments in use too, as a network
    does on which `eval()` is never called: a star's latents then depend on the stars beside it.
    sigmoid: whether the rebuilt values go through one.
    """

    n_values: int
    n_conditions: int
    latents: int
    hidden: tuple[int, ...]
    variational: bool
    linear_path: bool = True
    activation: Activation = "silu"
    batch_norm: BatchNorm = "none"
    sigmoid: bool = False


class Posterior(NamedTuple):
    """q(z | star) of n stars, normal in each latent.

    mean: shape (n, latents). log_variance: of that shape; None where the network is not variational: the mean is then the code.
    """

    mean: Tensor
    log_variance: Tensor | None


class Autoencoder(nn.Module):
    """Encoder q(z | values, condition) and decoder p(values | z, condition), after Kingma & Welling (2014), arXiv:1312.6114.

    >>> network = Autoencoder(NetworkShape(n_values=9, n_conditions=3, latents=6, hidden=(32, 32), variational=True))
    >>> mean, log_variance = network.encode(torch.zeros(4, 9), torch.zeros(4, 3))
    >>> tuple(mean.shape), tuple(network.decode(mean, torch.zeros(4, 3)).shape)
    ((4, 6), (4, 9))
    """

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        inputs, outputs = shape.n_values + shape.n_conditions, shape.latents * (2 if shape.variational else 1)
        self.encoder = _layers(shape, [inputs, *shape.hidden], outputs)
        self.decoder = _layers(shape, [shape.latents + shape.n_conditions, *reversed(shape.hidden)], shape.n_values)
        if shape.linear_path:
            self.encoder_skip = nn.Linear(inputs, shape.latents)
            self.decoder_skip = nn.Linear(shape.latents + shape.n_conditions, shape.n_values)

    @property
    def rows_at_once(self) -> int:
        """Stars that it is given at once in use."""
        if self.depends_on_batch:
            return _ROWS_OF_MOMENTS
        return _ROWS_ON_GPU if next(self.parameters()).is_cuda else _ROWS_ON_CPU

    @property
    def depends_on_batch(self) -> bool:
        """Whether what it makes of a star depends on the stars beside it."""
        return self.shape.batch_norm == "batch"

    def encode(self, values: Tensor, condition: Tensor) -> Posterior:
        """The posterior of stars.

        values: shape (n, n_values), 0 where null. condition: shape (n, n_conditions); its null bits, through the first
        layer's weights, act as learned constants in the place of the values that are null.
        """
        inputs = torch.cat([values, condition], dim=1)
        mean, log_variance = _through(self.encoder, inputs), None
        if self.shape.variational:
            mean, log_variance = mean.chunk(2, dim=1)
            log_variance = log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        return Posterior(mean + self.encoder_skip(inputs) if self.shape.linear_path else mean, log_variance)

    def mean(self, values: Tensor, condition: Tensor) -> Tensor:
        """The posterior's mean alone, shape (n, latents): the latents of stars."""
        inputs = torch.cat([values, condition], dim=1)
        *hidden, last = self.encoder
        assert isinstance(last, nn.Linear)
        latents = self.shape.latents
        mean = functional.linear(_through(hidden, inputs), last.weight[:latents], last.bias[:latents])
        return mean + self.encoder_skip(inputs) if self.shape.linear_path else mean

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        """Rebuilt values, shape (n, n_values), of latents z (n, latents) and condition (n, n_conditions)."""
        inputs = torch.cat([z, condition], dim=1)
        values = _through(self.decoder, inputs)
        if self.shape.linear_path:
            values = values + self.decoder_skip(inputs)
        return torch.sigmoid(values) if self.shape.sigmoid else values

    @torch.no_grad()
    def start_linear(self, values: Tensor, noise_scale: float) -> None:
        """Set the linear paths to the principal components of a sample, latents scaled to unit variance, and the
        posterior's first standard deviation to the one with which `noise_scale` lets the components be known.

        values: shape (n, n_values), n at least 2, 0 where null. Latents beyond n_values start at small random weights.
        Optimal among linear models for Gaussian data: Tipping & Bishop (1999), doi:10.1111/1467-9868.00196.
        """
        latents, n_values = self.shape.latents, self.shape.n_values
        sample = values.double().cpu()
        centre = sample.mean(0)
        variance, vectors = torch.linalg.eigh(torch.cov(sample.T).reshape(n_values, n_values))
        variance, vectors = variance.flip(0).clamp(min=1e-8), vectors.flip(1)
        k = min(latents, n_values)
        scale = variance[:k].sqrt()
        whiten = vectors[:, :k] / scale
        for skip in (self.encoder_skip, self.decoder_skip):
            nn.init.normal_(skip.weight, std=1e-3)
            nn.init.zeros_(skip.bias)
        self.encoder_skip.weight[:k].zero_()
        self.encoder_skip.weight[:k, :n_values] = whiten.T.to(self.encoder_skip.weight)
        self.encoder_skip.bias[:k] = -(centre @ whiten).to(self.encoder_skip.bias)
        self.decoder_skip.weight[:, :k] = (vectors[:, :k] * scale).to(self.decoder_skip.weight)
        self.decoder_skip.bias.copy_(centre)
        last = self.encoder[-1]
        if self.shape.variational and isinstance(last, nn.Linear):
            ratio = (noise_scale**2 / (noise_scale**2 + variance[:k])).log()
            last.bias[latents : latents + k] = ratio.to(last.bias)


def _through(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """What the layers make of x; where no gradient is needed, activations take the place of their inputs, which halves what is moved."""
    in_place = not torch.is_grad_enabled()
    for layer in layers:
        x = functional.silu(x, inplace=True) if in_place and isinstance(layer, nn.SiLU) else layer(x)
    return x


class OwnMoments(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) without running moments: in use as in training each
    batch is standardised by its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 0, correction=0)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.weight + self.bias


def _layers(shape: NetworkShape, widths: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers, each normalised where asked for and activated, then a linear layer.

    Beside a linear path the last layer's weights start near zero; else all start as Keras starts them (Glorot & Bengio 2010).
    """
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers.append(nn.Linear(before, after))
        if shape.batch_norm != "none":
            layers.append(OwnMoments(after) if shape.batch_norm == "batch" else nn.BatchNorm1d(after))
        layers.append(nn.SiLU() if shape.activation == "silu" else nn.ReLU())
    last = nn.Linear(widths[-1], outputs)
    if shape.linear_path:
        nn.init.normal_(last.weight, std=1e-2 / math.sqrt(widths[-1]))
        nn.init.zeros_(last.bias)
    else:
        for layer in (*layers, last):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers, last)
