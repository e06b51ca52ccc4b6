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

from gaiadask.config.presets import MOST_BITS, Activation, BatchNorm

# Stars at once in use. On a processor: the activations of the layers fit into its nearest cache; at 16,384 stars and layers of 128 the
# same network takes half as long again. On a GPU: enough to keep it busy, some 400 MB.
ROWS_ON_CPU, ROWS_ON_GPU = 4_096, 131_072
# Of a network whose batches' own moments are part of what the latents are.
_ROWS_OF_MOMENTS = 16_384

# exp() of log-variances within this stays in float32, with room for its square.
LOG_VARIANCE_LIMIT = 20.0

SQUASH = 2.0
"""Latents that are rounded are tanh(x / SQUASH), x as a latent that is not: of a unit normal x some nine tenths of their range are in use
from the start."""
_OUTERMOST = 1 - 2.0**-MOST_BITS


@dataclass(frozen=True)
class NetworkShape:
    """What an autoencoder is built from.

    n_values: inputs that are rebuilt. n_conditions: inputs given to both sides and not rebuilt (may be 0).
    hidden: widths of the encoder's hidden layers; the decoder has them reversed.
    variational: whether the encoder gives a log-variance too. linear_path: whether there is one beside the hidden layers.
    activation, batch_norm: of the hidden layers; batch_norm "batch" takes a batch's own moments in use too, as a network
    does on which `eval()` is never called: a star's latents then depend on the stars beside it.
    sigmoid: whether the rebuilt values go through one.
    bits: of a star, over all latents, where latents are rounded; 0: they are not.
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
    bits: int = 0


class Posterior(NamedTuple):
    """q(z | star) of n stars, in each latent normal, or uniform within a step about the mean, as wide as rounding may be off.

    mean: shape (n, latents). log_variance: of that shape; None where there is no normal. steps: shape (latents,), of the uniform one;
    with neither of the two the mean is the code.
    """

    mean: Tensor
    log_variance: Tensor | None
    steps: Tensor | None = None


class Autoencoder(nn.Module):
    """Encoder q(z | values, condition) and decoder p(values | z, condition), after Kingma & Welling (2014), arXiv:1312.6114.

    Where latents are rounded (`NetworkShape.bits`) they lie between -1 and 1, in 2^b equal steps each: b of each latent is the buffer
    `bits`, which training sets (`training.rounding`). Training puts uniform noise of a step in the place of rounding, after Balle et al.
    (2017), arXiv:1611.01704, section 3.1: with it the decoder sees what rounding leaves, and the loss has a gradient.

    >>> network = Autoencoder(NetworkShape(n_values=9, n_conditions=3, latents=6, hidden=(32, 32), variational=True))
    >>> mean, log_variance, _ = network.encode(torch.zeros(4, 9), torch.zeros(4, 3))
    >>> tuple(mean.shape), tuple(network.decode(mean, torch.zeros(4, 3)).shape)
    ((4, 6), (4, 9))
    """

    bits: Tensor
    squash = SQUASH

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        inputs, outputs = shape.n_values + shape.n_conditions, shape.latents * (2 if shape.variational else 1)
        self.encoder = _layers(shape, [inputs, *shape.hidden], outputs)
        self.decoder = _layers(shape, [shape.latents + shape.n_conditions, *reversed(shape.hidden)], shape.n_values)
        if shape.linear_path:
            self.encoder_skip = nn.Linear(inputs, shape.latents)
            self.decoder_skip = nn.Linear(shape.latents + shape.n_conditions, shape.n_values)
        if shape.bits:
            self.register_buffer("bits", shared_evenly(shape.bits, shape.latents))

    @property
    def latent_bits(self) -> list[int]:
        """Bits of each latent; 0 where latents are not rounded."""
        return self.bits.tolist() if self.shape.bits else [0] * self.shape.latents

    @property
    def steps(self) -> Tensor:
        """Steps that rounded latents are stored in, shape (latents,)."""
        return steps_of(self.bits)

    @property
    def rows_at_once(self) -> int:
        """Stars that it is given at once in use."""
        if self.depends_on_batch:
            return _ROWS_OF_MOMENTS
        return ROWS_ON_GPU if next(self.parameters()).is_cuda else ROWS_ON_CPU

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
        mean = mean + self.encoder_skip(inputs) if self.shape.linear_path else mean
        if self.shape.bits:
            return Posterior(torch.tanh(mean / SQUASH), None, self.steps)
        return Posterior(mean, log_variance)

    def mean(self, values: Tensor, condition: Tensor, bits: Tensor | None = None) -> Tensor:
        """The posterior's mean alone, shape (n, latents), rounded where latents are: the latents of stars.

        bits: of each latent, where not the network's own.
        """
        return self.rounded(self._unrounded(values, condition), bits)

    def moved(self, values: Tensor, condition: Tensor, by: float) -> tuple[Tensor, list[Tensor]]:
        """Stars as they are rebuilt without rounding, and as they are rebuilt if each latent in turn is off by `by`."""
        z = self._unrounded(values, condition)
        off = [z + by * (torch.arange(z.shape[1], device=z.device) == latent) for latent in range(z.shape[1])]
        return self.decode(z, condition), [self.decode(each, condition) for each in off]

    def _unrounded(self, values: Tensor, condition: Tensor) -> Tensor:
        inputs = torch.cat([values, condition], dim=1)
        *hidden, last = self.encoder
        assert isinstance(last, nn.Linear)
        latents = self.shape.latents
        mean = functional.linear(_through(hidden, inputs), last.weight[:latents], last.bias[:latents])
        mean = mean + self.encoder_skip(inputs) if self.shape.linear_path else mean
        return torch.tanh(mean / SQUASH) if self.shape.bits else mean

    def rounded(self, z: Tensor, bits: Tensor | None = None) -> Tensor:
        """Latents in the middle of the step that each lies in, shape as z; as they are where latents are not rounded."""
        if not self.shape.bits:
            return z
        return to_middles(z, self.steps if bits is None else steps_of(bits))

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        """Rebuilt values, shape (n, n_values), of latents z (n, latents) and condition (n, n_conditions)."""
        if self.shape.bits:
            z = unsquashed(z, SQUASH)
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


def shared_evenly(bits: int, latents: int) -> Tensor:
    """Bits of each latent before training shares them by what latents are worth, shape (latents,)."""
    each, more = divmod(bits, latents)
    return torch.tensor([each + (i < more) for i in range(latents)])


def steps_of(bits: Tensor) -> Tensor:
    """Steps that latents of so many bits are stored in, of the shape of `bits`."""
    return torch.exp2(1 - bits.float())


def to_middles(z: Tensor, steps: Tensor) -> Tensor:
    """Latents in the middle of the step that each lies in."""
    return within_steps((torch.floor(z / steps) + 0.5) * steps, steps)


def unsquashed(z: Tensor, squash: float) -> Tensor:
    """The x of latents z = tanh(x / squash), within the outermost step of any latent."""
    return squash * torch.atanh(z.clamp(-_OUTERMOST, _OUTERMOST))


def within_steps(z: Tensor, steps: Tensor) -> Tensor:
    """Latents between the middles of the outermost steps; a latent without bits has one step, from -1 to 1."""
    return torch.maximum(torch.minimum(z, 1 - steps / 2), steps / 2 - 1)


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
