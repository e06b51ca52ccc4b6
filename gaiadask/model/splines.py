"""Distributions as splines: monotone maps of values to scores, which are normal, and back."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)
BOUND = 6.0
"""Splines bend within so many widths of a value's distribution; beyond, a score is the distance from the middle."""
_LEAST_WIDTH, _WIDEST = -7.0, 4.0
"""Limits of the logarithm of what a star's own width is beside the column's."""
_LIMIT = 3.5
"""Of the logarithms of widths and heights of bins, and of half those of slopes."""


class Spline:
    """Distributions of values as monotone maps to scores, which are normal: a shift and a width, then a rational quadratic spline.

    Durkan et al. (2019), arXiv:1906.04032, equations 4 to 8.
    """

    def __init__(self, numbers: Tensor, middle: Tensor, log_width: Tensor, bins: int, sums: Tensor) -> None:
        """numbers: shape (3 bins + 1, ...). middle: shape (...); log_width: one that broadcasts to it. sums: `knot_sums(bins)`."""
        # Soft limits: no bin is narrower than exp(-2 limit) of another. One exponential and one product for all that is positive.
        bends = numbers[: 3 * bins - 1]
        positive = torch.exp(bends / (1 + bends.abs() / _LIMIT))
        knots = (sums @ positive.flatten(1)).unflatten(1, bends.shape[1:])
        self.knots = Knots.of(knots, positive[2 * bins :].square())
        self.middle, self.shift = middle, numbers[3 * bins]
        self.log_width = log_width + numbers[3 * bins - 1].clamp(_LEAST_WIDTH, _WIDEST)

    def of(self, place: int) -> Spline:
        """That of one value."""
        one = copy.copy(self)
        one.knots = Knots(*(part[:, place] for part in self.knots))
        one.middle, one.shift, one.log_width = (part[place] for part in (self.middle, self.shift, self.log_width))
        return one

    def score(self, value: Tensor) -> Tensor:
        """Scores of values."""
        return self.knots.image(self._standard(value))

    def call(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of values, and the logarithm of their slope."""
        score, log_slope = self.knots.call(self._standard(value))
        return score, log_slope - self.log_width

    def value(self, score: Tensor) -> Tensor:
        """Values of scores."""
        return (self.knots.undone(score) + self.shift) * torch.exp(self.log_width) + self.middle

    def _standard(self, value: Tensor) -> Tensor:
        return (value - self.middle) * torch.exp(-self.log_width) - self.shift


class Knots(NamedTuple):
    """Where splines bend, shape (bins + 1, ...) each: places, their images, slopes there; from -BOUND to BOUND, beyond which nothing is changed."""

    x: Tensor
    y: Tensor
    slopes: Tensor

    @classmethod
    def of(cls, sums: Tensor, slopes: Tensor) -> Knots:
        """From the sums of the widths and of the heights of bins, shape (2 (bins + 1), ...), and the slopes between two bins, shape (bins - 1, ...)."""
        # Beyond the outermost knots the slope is 1.
        beyond, ends = torch.ones_like(sums[:1]), len(sums) // 2
        return cls(_between(sums[:ends]), _between(sums[ends:]), torch.cat([beyond, slopes, beyond]))

    def image(self, x: Tensor) -> Tensor:
        """What is made of places."""
        return self._image(x, self._bend(self.x, x))

    def call(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is made of places, and the logarithm of the slope there."""
        bend = self._bend(self.x, x)
        return self._image(x, bend), torch.where(x.abs() < BOUND, bend.log_slope(x), 0.0)

    def undone(self, y: Tensor) -> Tensor:
        """The places whose image is y."""
        return torch.where(y.abs() < BOUND, self._bend(self.y, y).undone(y), y)

    @staticmethod
    def _image(x: Tensor, bend: _Bend) -> Tensor:
        return torch.where(x.abs() < BOUND, bend.y + bend.height * bend.share(x), x)

    def _bend(self, along: Tensor, at: Tensor) -> _Bend:
        """Between which knots, `along` x or y, something lies; between the outermost two where it lies beyond them."""
        number = (along[1:-1] < at).sum(0, keepdim=True)
        x0, x1, y0, y1, d0, d1 = (each.gather(0, number + more)[0] for each in self for more in (0, 1))
        return _Bend(x0, x1 - x0, y0, y1 - y0, d0, d1)


class _Bend(NamedTuple):
    """One bin of a spline: where it begins, how wide and high it is, and the slopes at both ends."""

    x: Tensor
    width: Tensor
    y: Tensor
    height: Tensor
    first: Tensor
    last: Tensor

    def share(self, x: Tensor) -> Tensor:
        """How much of the height is below x (equation 4)."""
        slope, t = self.height / self.width, ((x - self.x) / self.width).clamp(0, 1)
        u = t * (1 - t)
        return (slope * t.square() + self.first * u) / (slope + (self.first + self.last - 2 * slope) * u)

    def log_slope(self, x: Tensor) -> Tensor:
        """Logarithm of the slope at x (equation 5)."""
        slope, t = self.height / self.width, ((x - self.x) / self.width).clamp(0, 1)
        u = t * (1 - t)
        above = self.last * t.square() + 2 * slope * u + self.first * (1 - t).square()
        return 2 * slope.log() + above.log() - 2 * (slope + (self.first + self.last - 2 * slope) * u).log()

    def undone(self, y: Tensor) -> Tensor:
        """The x whose image is y (equations 6 to 8)."""
        slope, up = self.height / self.width, (y - self.y).clamp(min=torch.zeros_like(y), max=self.height)
        turn = up * (self.first + self.last - 2 * slope)
        a, b, c = self.height * (slope - self.first) + turn, self.height * self.first - turn, slope * up
        return self.x + self.width * (2 * c / (b + (b.square() + 4 * a * c).clamp(min=0).sqrt()).clamp(min=1e-30))


def knot_sums(bins: int) -> Tensor:
    """Matrix that makes the knots' places of the widths and heights of bins and the slopes, shape (2 (bins + 1), 3 bins - 1)."""
    sums = torch.zeros(2 * (bins + 1), 3 * bins - 1)
    upto = torch.tril(torch.ones(bins + 1, bins), -1)
    sums[: bins + 1, :bins], sums[bins + 1 :, bins : 2 * bins] = upto, upto
    return sums


def _between(sums: Tensor) -> Tensor:
    """Cumulative sums as places from -BOUND to BOUND."""
    return sums * (2 * BOUND / sums[-1:]) - BOUND
