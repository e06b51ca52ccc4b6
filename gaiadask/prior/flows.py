"""Conditional densities: a rough bijection fitted by linear algebra and sorting, then a neural spline flow for the rest.

`Gaussianised` takes out linear dependence and marginal shape, so that the network learns only how columns depend on each other
nonlinearly; a flow that starts from raw columns spends most of its steps on what needs no network. Of the flow (`spline_flow`) the inverse
draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor
from zuko.lazy import Flow

from gaiadask.config.sections import PriorConfig
from gaiadask.prior.spline_flow import InverseFlow, log_density, new_flow

Floats = NDArray[np.float64]

# Scores at which quantiles are taken, 20 a standard deviation: finer ones would follow the noise of a million stars' tails.
KNOT_SCORES = np.linspace(-4.0, 4.0, 161)
# Of a direction's own spread: values nearer than this count as one, so that every map can be inverted.
_TIE = 1e-9
# Added to the covariance of standardised columns, so that columns which follow from others keep a direction of their own. Both
# numbers bound the error of a round trip.
_RIDGE = 1e-10
# The least variance that a column is given, beside the ridge: of a constant column.
_LEAST_VARIANCE = 1e-12
# Knots over which the slope of a tail is taken: fewer follow the outermost stars, more bend it towards the middle.
_TAIL_KNOTS = 8
# Rows drawn at once: bounds memory, and is part of what a seed gives, since last bits depend on it.
_DRAW_ROWS = 4_096


@dataclass(frozen=True, eq=False)
class Gaussianised:
    """A map of columns to nearly standard normal scores: the Cholesky factor of their covariance takes out linear dependence (of each
    column on those before it), then each direction's own quantiles make it normal.

    mean: shape (d,). factor: shape (d, d), lower triangle. knots: shape (d, k), the quantiles at `scores`, shape (k,).
    The round trip is exact to about 1e-9 of a column's spread.
    """

    mean: Floats
    factor: Floats
    knots: Floats
    scores: Floats

    @classmethod
    def fit(cls, x: NDArray[np.floating]) -> Gaussianised:
        """Fit the map to columns x, shape (n, d), n at least 2."""
        x = np.asarray(x, np.float64)
        mean, spread = x.mean(0), x.std(0)
        spread = np.where(spread > 0, spread, 1.0)
        covariance = np.atleast_2d(np.cov((x - mean) / spread, rowvar=False)) + _RIDGE * np.eye(x.shape[1])
        np.fill_diagonal(covariance, np.maximum(np.diag(covariance), _RIDGE + _LEAST_VARIANCE))
        factor = spread[:, None] * np.linalg.cholesky(covariance)
        directions = np.linalg.solve(factor, (x - mean).T)
        edge = 0.5 / len(x)
        ranks = norm.cdf(KNOT_SCORES)
        ranks = np.concatenate([[edge], ranks[(ranks > edge) & (ranks < 1 - edge)], [1 - edge]])
        knots = np.quantile(directions, ranks, axis=1).T
        # Repeated values would make a map without an inverse.
        knots = np.maximum.accumulate(knots, axis=1) + _TIE * np.arange(len(ranks))
        return cls(mean, factor, knots, norm.ppf(ranks))

    def forward(self, x: NDArray[np.floating]) -> Floats:
        """Nearly normal scores of columns, both of shape (n, d)."""
        directions = self._directions(x)
        return np.stack([_along(d, knots, self.scores) for d, knots in zip(directions, self.knots, strict=True)], axis=1)

    def log_stretch(self, x: NDArray[np.floating]) -> Floats:
        """Logarithm of how much larger a volume of scores is than that of the columns, shape (n,): of `forward` the determinant."""
        slopes = [_slope_along(d, knots, self.scores) for d, knots in zip(self._directions(x), self.knots, strict=True)]
        stretch: Floats = np.log(np.array(slopes)).sum(axis=0) - float(np.log(np.diag(self.factor)).sum())
        return stretch

    def _directions(self, x: NDArray[np.floating]) -> Floats:
        return np.asarray(np.linalg.solve(self.factor, (np.asarray(x, np.float64) - self.mean).T), np.float64)

    def inverse(self, scores: NDArray[np.floating]) -> Floats:
        """Columns of scores, both of shape (n, d)."""
        columns = np.asarray(scores, np.float64).T
        directions = np.stack([_along(s, self.scores, knots) for s, knots in zip(columns, self.knots, strict=True)])
        return (self.factor @ directions).T + self.mean


def _along(values: Floats, at: Floats, to: Floats) -> Floats:
    """Linear between knots; beyond the outermost with the slope of the last few."""
    low, high = _tail_slopes(at, to)
    return np.interp(values, at, to) + low * np.minimum(values - at[0], 0) + high * np.maximum(values - at[-1], 0)


def _slope_along(values: Floats, at: Floats, to: Floats) -> Floats:
    """Slope of `_along`."""
    slopes = np.array([_tail_slopes(at, to)[0], *(np.diff(to) / np.diff(at)), _tail_slopes(at, to)[1]])
    return slopes[np.searchsorted(at, values, side="right")]


def _tail_slopes(at: Floats, to: Floats) -> tuple[float, float]:
    k = min(_TAIL_KNOTS, len(at) - 1)
    return (to[k] - to[0]) / (at[k] - at[0]), (to[-1] - to[-1 - k]) / (at[-1] - at[-1 - k])


@dataclass(frozen=True, eq=False)
class Density:
    """A conditional density p(x | context). centre, width: mean and standard deviation of the context's columns, shape (c,)."""

    rough: Gaussianised
    centre: Floats
    width: Floats
    flow: Flow

    @property
    def features(self) -> int:
        """Columns of x, d."""
        return len(self.rough.mean)

    @property
    def context(self) -> int:
        """Columns of the context, c."""
        return len(self.centre)

    def to(self, device: torch.device) -> None:
        """Move the flow to a device: where `draw` computes."""
        self.flow.to(device)

    def draw(self, context: NDArray[np.floating], random: np.random.Generator) -> Floats:
        """Draw one x, shape (n, d), for each row of a context, shape (n, c)."""
        noise = random.standard_normal((len(context), self.features), dtype=np.float32)
        scores = np.empty_like(noise)
        device = next(self.flow.parameters()).device
        given = self.scaled_context(context)
        with one_thread(), torch.inference_mode():
            inverse = InverseFlow(self.flow)
            for first in range(0, len(noise), _DRAW_ROWS):
                rows = slice(first, first + _DRAW_ROWS)
                batch = torch.from_numpy(noise[rows]).to(device)
                scores[rows] = inverse(batch, given[rows].to(device) if self.context else None).cpu().numpy()
        return self.rough.inverse(scores)

    def log_density(self, x: NDArray[np.floating], context: NDArray[np.floating]) -> Floats:
        """Logarithm of the density at each x, shape (n, d), given its context, shape (n, c); shape (n,), nats."""
        scores, device = torch.from_numpy(self.rough.forward(x).astype(np.float32)), next(self.flow.parameters()).device
        given, density = self.scaled_context(context), np.empty(len(x))
        with one_thread(), torch.inference_mode():
            for first in range(0, len(x), _DRAW_ROWS):
                rows = slice(first, first + _DRAW_ROWS)
                context_here = given[rows].to(device) if self.context else None
                density[rows] = log_density(self.flow, scores[rows].to(device), context_here).cpu().numpy()
        return density + self.rough.log_stretch(x)

    def scaled_context(self, context: NDArray[np.floating]) -> Tensor:
        """A context, shape (n, c), as the flow takes it: of mean 0 and standard deviation 1 among train stars."""
        return torch.from_numpy(((context - self.centre) / self.width).astype(np.float32))

    def to_arrays(self) -> dict[str, NDArray]:
        """Arrays by name, as the file of weights has them."""
        rough = {f"rough.{name}": np.asarray(getattr(self.rough, name)) for name in self.rough.__dataclass_fields__}
        flow = {f"flow.{name}": tensor.cpu().numpy() for name, tensor in self.flow.state_dict().items()}
        return {**rough, "centre": self.centre, "width": self.width, **flow}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray], config: PriorConfig) -> Density:
        """The inverse of `to_arrays`.

        Raises:
            KeyError: an array is missing.
            RuntimeError: the arrays are of a flow of another shape.
        """
        rough = Gaussianised(**{name: arrays[f"rough.{name}"] for name in Gaussianised.__dataclass_fields__})
        flow = new_flow(len(rough.mean), len(arrays["centre"]), config)
        flow.load_state_dict(
            {n.removeprefix("flow."): torch.from_numpy(np.array(a)) for n, a in arrays.items() if n.startswith("flow.")}
        )
        return cls(rough, arrays["centre"], arrays["width"], flow.eval())


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch with one thread: workers share the cores, and last bits depend on how many threads there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
