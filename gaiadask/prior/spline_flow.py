"""Autoregressive spline flows (Durkan et al. 2019, arXiv:1906.04032): zuko's networks, with densities and draws computed in fewer operations.

zuko has the numbers of a spline along the last axis, of which there are 8 in a row; here stars are along it, so that each operation runs over
thousands of numbers. Densities are zuko's to the rounding of float32 and take half of its time, draws a quarter of it or less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from zuko.distributions import DiagNormal
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.lazy import Flow, UnconditionalDistribution
from zuko.nn import MaskedLinear
from zuko.transforms import MonotonicRQSTransform

from gaiadask.config.sections import PriorConfig
from gaiadask.model.splines import BOUND, LOG_ROOT_2_PI, Knots, knot_sums

# Factor of the initial weights of a flow's last layer: nearly 0, so that it starts as the identity, where the rough map ends; 0 would stop gradients.
_FIRST_WEIGHTS = 0.05
# zuko's logarithm of the least slope of a spline, which limits the logarithms of widths, heights and slopes.
_LOG_LEAST_SLOPE = math.log(1e-3)


def new_flow(features: int, context: int, config: PriorConfig) -> Flow:
    """An untrained flow of `features` columns given `context` numbers (may be 0)."""
    orders = [torch.arange(features), torch.flipud(torch.arange(features))]
    shapes = ((config.bins,), (config.bins,), (config.bins - 1,))
    spline = partial(MonotonicRQSTransform, bound=BOUND)
    transforms = [
        MaskedAutoregressiveTransform(
            features, context, order=orders[i % 2], univariate=spline, shapes=shapes, hidden_features=config.hidden,
            activation=nn.SiLU,
        )
        for i in range(config.transforms)
    ]  # fmt: skip
    with torch.no_grad():
        for transform in transforms:
            # A lone column without context has no network, only the spline's parameters.
            last = transform.hyper[-1] if hasattr(transform, "hyper") else transform
            for parameter in last.parameters():
                parameter.mul_(_FIRST_WEIGHTS)
    base = UnconditionalDistribution(DiagNormal, loc=torch.zeros(features), scale=torch.ones(features), buffer=True)
    return Flow(transforms, base)


class _ZukoSpline:
    """zuko's MonotonicRQSTransform, of numbers along the first axis. like: a tensor of the type and on the device of the numbers."""

    def __init__(self, bins: int, like: Tensor) -> None:
        self.bins, self.sums = bins, knot_sums(bins).to(like)
        limits = torch.full((3 * bins - 1,), -_LOG_LEAST_SLOPE)
        limits[: 2 * bins] /= 2
        self.limits = limits.to(like)

    def knots(self, numbers: Tensor) -> Knots:
        """numbers: shape (3 bins - 1, ...), logarithms of widths and heights of bins, and of slopes between them, before they are limited."""
        limits = self.limits.reshape(-1, *[1] * (numbers.ndim - 1))
        positive = torch.exp(numbers / (1 + numbers.abs() / limits))
        return Knots.of((self.sums @ positive.flatten(1)).unflatten(1, positive.shape[1:]), positive[2 * self.bins :])


def _masked_layers(transform: MaskedAutoregressiveTransform) -> list[MaskedLinear]:
    return [layer for layer in transform.hyper if isinstance(layer, MaskedLinear)]


# Densities -----------------------------------------------------------------------------------------------------------
def log_density(flow: Flow, scores: Tensor, given: Tensor | None) -> Tensor:
    """Logarithm of the flow's density of scores, shape (n, d), given a context, shape (n, c) or None; shape (n,), nats."""
    x, context = scores.T, None if given is None else given.T
    stretch = torch.zeros_like(x[0])
    for transform in flow.transform.transforms:
        if isinstance(transform, MaskedAutoregressiveTransform):
            x, log_slopes = _forward(transform, x, context)
            stretch = stretch + log_slopes.sum(0)
        else:  # of a lone column
            y, log_slope = transform(given).call_and_ladj(x.T)
            x, stretch = y.T, stretch + log_slope
    return stretch - 0.5 * x.square().sum(0) - len(x) * LOG_ROOT_2_PI


def _forward(transform: MaskedAutoregressiveTransform, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """What is made of x, shape (d, n), given a context, shape (c, n), and the logarithms of the slopes, of the shape of x."""
    *layers, last = _masked_layers(transform)
    hidden = x if context is None else torch.cat([x, context])
    for layer in layers:
        hidden = functional.silu(torch.addmm(layer.bias[:, None], layer.mask * layer.weight, hidden))
    # The numbers of a column stand together in zuko's last layer.
    weight, bias = (part.unflatten(0, (len(x), -1)).transpose(0, 1).flatten(0, 1) for part in (last.mask * last.weight, last.bias))
    numbers = torch.addmm(bias[:, None], weight, hidden).unflatten(0, (-1, len(x)))
    return _ZukoSpline(math.prod(transform.shapes[0]), numbers).knots(numbers).call(x)


# Draws ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Layer:
    """A masked layer whose units come in the order in which they can be computed.

    weight: shape (units, units of the layer before), 0 where masked. bias: shape (units, 1). ends: after how many units those end that see
    at most the first 0, 1, … columns.
    """

    weight: Tensor
    bias: Tensor
    ends: list[int]


class _Inverse:
    """The inverse of an autoregressive transform: column after column, each from those before it.

    zuko's own inverse computes all columns in each of its d passes. Here a hidden unit is computed once, as soon as the columns are known
    that it sees, so that all columns together cost one pass.
    """

    def __init__(self, transform: MaskedAutoregressiveTransform) -> None:
        self.order: list[int] = torch.argsort(transform.order).tolist()
        first, *between, last = _masked_layers(transform)
        columns = len(self.order)
        place = torch.empty(columns, dtype=torch.long, device=first.weight.device)
        place[self.order] = torch.arange(columns, device=place.device)
        # Of each unit, how many of the columns it sees.
        seen = (first.mask[:, :columns] * (place + 1)).amax(dim=1)
        by_seen = torch.argsort(seen, stable=True)
        into = (first.mask * first.weight)[by_seen]
        self.into, self.given = into[:, :columns][:, self.order], into[:, columns:]
        self.bias, self.ends = first.bias[by_seen][:, None], self._ends(seen)
        self.layers = []
        for layer in between:
            before, by_seen_before = seen, by_seen
            seen = (layer.mask * before).amax(dim=1)
            by_seen = torch.argsort(seen, stable=True)
            weight = (layer.mask * layer.weight)[by_seen][:, by_seen_before]
            self.layers.append(_Layer(weight, layer.bias[by_seen][:, None], self._ends(seen)))
        self.out = (last.mask * last.weight)[:, by_seen].unflatten(0, (columns, -1))
        self.out_bias = last.bias.unflatten(0, (columns, -1))[:, :, None]
        self.spline = _ZukoSpline(math.prod(transform.shapes[0]), self.out)

    def _ends(self, seen: Tensor) -> list[int]:
        ends: list[int] = torch.searchsorted(
            seen.sort().values, torch.arange(len(self.order), device=seen.device), right=True
        ).tolist()
        return ends

    def __call__(self, y: Tensor, given: Tensor | None) -> Tensor:
        """The x whose transform given (n, c) is y, both of shape (n, d)."""
        sums = self.bias.expand(-1, len(y)) if given is None else torch.addmm(self.bias, self.given, given.T)
        hidden = [y.new_empty(len(self.bias), len(y)), *(y.new_empty(len(layer.bias), len(y)) for layer in self.layers)]
        noise = y.T.contiguous()
        x, begins = torch.empty_like(noise), [0] * len(hidden)  # x in the order of columns
        for place, column in enumerate(self.order):
            ends = [self.ends[place], *(layer.ends[place] for layer in self.layers)]
            new = slice(begins[0], ends[0])
            hidden[0][new] = functional.silu(torch.addmm(sums[new], self.into[new, :place], x[:place]))
            for number, layer in enumerate(self.layers, start=1):
                new, known = slice(begins[number], ends[number]), slice(ends[number - 1])
                hidden[number][new] = functional.silu(
                    torch.addmm(layer.bias[new], layer.weight[new, known], hidden[number - 1][known])
                )
            parameters = torch.addmm(self.out_bias[column], self.out[column][:, : ends[-1]], hidden[-1][: ends[-1]])
            x[place] = self.spline.knots(parameters).undone(noise[column])
            begins = ends
        return x[torch.argsort(torch.tensor(self.order, device=x.device))].T


class InverseFlow:
    """Scores of standard normal noise: a flow's transforms undone, the last one first."""

    def __init__(self, flow: Flow) -> None:
        self._transforms = [
            _Inverse(transform) if isinstance(transform, MaskedAutoregressiveTransform) else partial(_alone, transform)
            for transform in reversed(flow.transform.transforms)
        ]

    def __call__(self, noise: Tensor, given: Tensor | None) -> Tensor:
        """Scores, shape (n, d), of noise, shape (n, d), given a context, shape (n, c)."""
        x = noise
        for inverse in self._transforms:
            x = inverse(x, given)
        return x


def _alone(transform: nn.Module, y: Tensor, given: Tensor | None) -> Tensor:
    """The inverse of the transform of a lone column, which needs no order."""
    x: Tensor = transform(given).inv(y)
    return x
