"""Conditional densities: a rough bijection fitted by linear algebra and sorting, then a neural spline flow for the rest.

`Gaussianised` takes out linear dependence and marginal shape, so that the network learns only how the columns hang together
nonlinearly; a flow that starts from raw columns spends most of its steps on what needs none. The flow itself is zuko's
(autoregressive neural splines: Durkan et al. 2019, arXiv:1906.04032), and its inverse draws.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional
from zuko.distributions import DiagNormal
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.lazy import Flow, UnconditionalDistribution
from zuko.transforms import MonotonicRQSTransform

from gaiadask.config.sections import PriorConfig
from gaiadask.errors import TrainingError
from gaiadask.store.files import Store
from gaiadask.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

Floats = NDArray[np.float64]

# Splines bend within this many standard deviations; beyond them a score stays as it is.
SPLINE_BOUND = 6.0
KNOT_SCORES = np.linspace(-4.0, 4.0, 161)
# Of a direction's own spread: values nearer than this count as one, so that every map can be inverted.
_TIE = 1e-9
_RIDGE = 1e-10
# Knots over which the slope of a tail is taken.
_TAIL_KNOTS = 8
_FIRST_WEIGHTS = 0.05
_GRADIENT_NORM = 5.0
_WARMUP = 0.05
_VALIDATIONS = 10
_DRAW_ROWS = 4_096


@dataclass(frozen=True, eq=False)
class Gaussianised:
    """Columns to nearly standard normal ones: the Cholesky factor of their covariance takes out linear dependence (each
    column but for what those before it tell), then each direction's own quantiles make it normal.

    mean: shape (d,). factor: shape (d, d), lower triangle. knots: shape (d, k), the quantiles at `scores`, shape (k,).
    The round trip is exact to about 1e-9 of a column's spread.
    """

    mean: Floats
    factor: Floats
    knots: Floats
    scores: Floats

    @classmethod
    def fit(cls, x: NDArray[np.floating]) -> Gaussianised:
        """x: shape (n, d), n at least 2."""
        x = np.asarray(x, np.float64)
        mean, spread = x.mean(0), x.std(0)
        spread = np.where(spread > 0, spread, 1.0)
        covariance = np.atleast_2d(np.cov((x - mean) / spread, rowvar=False)) + _RIDGE * np.eye(x.shape[1])
        np.fill_diagonal(covariance, np.maximum(np.diag(covariance), _RIDGE + 1e-12))
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
        directions = np.linalg.solve(self.factor, (np.asarray(x, np.float64) - self.mean).T)
        return np.stack([_along(d, knots, self.scores) for d, knots in zip(directions, self.knots, strict=True)], axis=1)

    def inverse(self, scores: NDArray[np.floating]) -> Floats:
        """Columns of scores, both of shape (n, d)."""
        columns = np.asarray(scores, np.float64).T
        directions = np.stack([_along(s, self.scores, knots) for s, knots in zip(columns, self.knots, strict=True)])
        return (self.factor @ directions).T + self.mean


def _along(values: Floats, at: Floats, to: Floats) -> Floats:
    """Linear between knots; beyond the outermost with the slope of the last few."""
    k = min(_TAIL_KNOTS, len(at) - 1)
    low, high = (to[k] - to[0]) / (at[k] - at[0]), (to[-1] - to[-1 - k]) / (at[-1] - at[-1 - k])
    return np.interp(values, at, to) + low * np.minimum(values - at[0], 0) + high * np.maximum(values - at[-1], 0)


def new_flow(features: int, context: int, config: PriorConfig) -> Flow:
    """An untrained flow of `features` columns given `context` numbers (may be 0)."""
    orders = [torch.arange(features), torch.flipud(torch.arange(features))]
    shapes = ((config.bins,), (config.bins,), (config.bins - 1,))
    spline = partial(MonotonicRQSTransform, bound=SPLINE_BOUND)
    transforms = [
        MaskedAutoregressiveTransform(
            features, context, order=orders[i % 2], univariate=spline, shapes=shapes, hidden_features=config.hidden,
            activation=nn.SiLU,
        )
        for i in range(config.transforms)
    ]  # fmt: skip
    with torch.no_grad():
        for transform in transforms:
            # Nearly 0, so that the flow starts as the identity, where the rough map has left things. A lone column without
            # context has no network, only the spline's parameters.
            last = transform.hyper[-1] if hasattr(transform, "hyper") else transform
            for parameter in last.parameters():
                parameter.mul_(_FIRST_WEIGHTS)
    base = UnconditionalDistribution(DiagNormal, loc=torch.zeros(features), scale=torch.ones(features), buffer=True)
    return Flow(transforms, base)


@dataclass(frozen=True, eq=False)
class Density:
    """p(x | context), from which can be drawn. centre, width: of the context's columns, shape (c,)."""

    rough: Gaussianised
    centre: Floats
    width: Floats
    flow: Flow

    @property
    def features(self) -> int:
        return len(self.rough.mean)

    @property
    def context(self) -> int:
        return len(self.centre)

    def draw(self, context: NDArray[np.floating], random: np.random.Generator) -> Floats:
        """One x a row of `context`, shape (n, c): shape (n, d)."""
        noise = random.standard_normal((len(context), self.features), dtype=np.float32)
        scores = np.empty_like(noise)
        given = self.given(context)
        with one_thread(), torch.inference_mode():
            for first in range(0, len(noise), _DRAW_ROWS):
                rows = slice(first, first + _DRAW_ROWS)
                scores[rows] = _drawn(self.flow, torch.from_numpy(noise[rows]), given[rows] if self.context else None).numpy()
        return self.rough.inverse(scores)

    def given(self, context: NDArray[np.floating]) -> Tensor:
        """The context as the flow takes it."""
        return torch.from_numpy(((context - self.centre) / self.width).astype(np.float32))

    def to_arrays(self) -> dict[str, NDArray]:
        """As arrays by name, to be stored."""
        rough = {f"rough.{name}": np.asarray(getattr(self.rough, name)) for name in self.rough.__dataclass_fields__}
        flow = {f"flow.{name}": tensor.numpy() for name, tensor in self.flow.state_dict().items()}
        return {**rough, "centre": self.centre, "width": self.width, **flow}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray], config: PriorConfig) -> Density:
        """Back from `to_arrays`. Raises KeyError or RuntimeError where they are of another density."""
        rough = Gaussianised(**{name: arrays[f"rough.{name}"] for name in Gaussianised.__dataclass_fields__})
        flow = new_flow(len(rough.mean), len(arrays["centre"]), config)
        flow.load_state_dict(
            {n.removeprefix("flow."): torch.from_numpy(np.array(a)) for n, a in arrays.items() if n.startswith("flow.")}
        )
        return cls(rough, arrays["centre"], arrays["width"], flow.eval())


def _drawn(flow: Flow, noise: Tensor, given: Tensor | None) -> Tensor:
    """What the flow makes of standard normal noise, shape (n, d), given (n, c)."""
    x = noise
    for transform in reversed(flow.transform.transforms):
        x = _inverse(transform, x, given) if isinstance(transform, MaskedAutoregressiveTransform) else transform(given).inv(x)
    return x


def _inverse(transform: MaskedAutoregressiveTransform, y: Tensor, given: Tensor | None) -> Tensor:
    """x whose transform given (n, c) is y, both of shape (n, d): column after column, each from those before it.

    zuko's own inverse computes all columns in each of its d passes; this one, a pass, the one column that is due, and adds
    it to what the first layer has summed. A draw of 8 columns takes a quarter of the time, one of 89 a fortieth.
    """
    first, *between, last = transform.hyper
    columns = y.shape[1]
    into = first.mask * first.weight
    out = (last.mask * last.weight).unflatten(0, (columns, -1))
    bias = last.bias.unflatten(0, (columns, -1))
    total = first.bias.repeat(len(y), 1)
    if given is not None:
        total.addmm_(given, into[:, columns:].T)
    x = torch.empty_like(y)
    for i in torch.argsort(transform.order).tolist():
        hidden = total
        for layer in between:
            hidden = layer(hidden)
        parameters = functional.linear(hidden, out[i], bias[i]).split([math.prod(shape) for shape in transform.shapes], dim=1)
        x[:, i] = transform.univariate(*parameters).inv(y[:, i])
        total.addr_(x[:, i], into[:, i])
    return x


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch with one thread: workers share the cores, and last bits depend on how many threads there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Kept:
    """Where a fit's checkpoint is kept, file `name` of the store, and the key of what is fitted: another's is ignored."""

    store: Store
    name: str
    key: str

    def read(self) -> Checkpoint | None:
        """Raises StoreError where it is damaged."""
        saved = read_checkpoint(self.store, self.name)
        return saved if saved is not None and saved.state["key"] == self.key else None

    def write(self, density: Density, best: _Best, optimiser: torch.optim.Optimizer, seen: int, seconds: float) -> None:
        """Replace it."""
        state = {"key": self.key, "rows_seen": seen, "seconds": seconds, "best": best.state()}
        write_checkpoint(self.store, self.name, Checkpoint.of(density.flow, best.weights, optimiser, state))


def fit_density(
    train: tuple[NDArray[np.floating], NDArray[np.floating]],
    validation: tuple[NDArray[np.floating], NDArray[np.floating]],
    config: PriorConfig,
    seed: int,
    report: Callable[[float], None] = lambda share: None,
    kept: Kept | None = None,
) -> tuple[Density, dict[str, Any]]:
    """p(x | context) of train stars, (x (n, d), context (n, c)); the weights of the lowest validation loss.

    The learning rate rises, then falls to nothing over rows_seen or max_seconds, whichever ends first. Returns the density
    and what came of it: rows_seen, seconds, validation_loss (nats a star, of the gaussianised columns) and its course.
    report: called with the share that is done. kept: where a checkpoint is left at each validation and gone on from. Raises
    TrainingError where the loss is not finite, StoreError where the checkpoint is damaged or cannot be written.
    """
    (x, context), began = train, time.monotonic()
    rough = Gaussianised.fit(x)
    width = context.std(0)
    torch.manual_seed(seed)
    density = Density(
        rough, context.mean(0).astype(np.float64), np.where(width > 0, width, 1.0).astype(np.float64),
        new_flow(x.shape[1], context.shape[1], config),
    )  # fmt: skip
    seen = 0
    with one_thread():
        stars = _tensors(density, x, context)
        rated = _tensors(density, *validation)
        best = _Best(density.flow, rated, config.patience)
        optimiser = torch.optim.Adam(density.flow.parameters(), lr=config.learning_rate)
        if kept and (saved := kept.read()):
            saved.load_into(density.flow, optimiser)
            best.restore(saved.best, saved.state["best"])
            seen, began = saved.state["rows_seen"], began - saved.state["seconds"]
        for rows in _batches(len(x), config.batch_rows, seed, seen):
            seconds = time.monotonic() - began
            share = max(seen / config.rows_seen, seconds / config.max_seconds if config.max_seconds else 0.0)
            if best.due(share):
                best.rate(seen, share)
                if kept:
                    kept.write(density, best, optimiser, seen, seconds)
            if best.over:
                break
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * _rate(share)
            batch = [part[rows] for part in stars]
            loss = _loss(density.flow, *batch)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(density.flow.parameters(), _GRADIENT_NORM)
            optimiser.step()
            seen += len(rows)
            report(min(share, 1.0))
    density.flow.load_state_dict(best.weights)
    density.flow.eval()
    found = {"rows_seen": seen, "seconds": time.monotonic() - began, "validation_loss": best.loss, "course": best.course}
    return density, found


def _tensors(density: Density, x: NDArray[np.floating], context: NDArray[np.floating]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(density.rough.forward(x).astype(np.float32)), density.given(context)


def _loss(flow: Flow, x: Tensor, given: Tensor) -> Tensor:
    """Minus log-likelihood, nats a star."""
    return -flow(given if given.shape[1] else None).log_prob(x).mean()


def _batches(n: int, rows: int, seed: int, seen: int) -> Iterator[Tensor]:
    """Row numbers of shuffled batches, for ever, after those that hold the first `seen` rows; what does not fill a batch is
    left out of a pass."""
    rows = min(rows, n)
    passed, first = divmod(seen // rows, n // rows)
    for number in itertools.count(passed):
        order = torch.from_numpy(np.random.default_rng([seed, number]).permutation(n))
        yield from order[: n // rows * rows].split(rows)[first:]
        first = 0


def _rate(share: float) -> float:
    """Share of the peak learning rate: a linear rise, then half a cosine down to nothing."""
    if share < _WARMUP:
        return share / _WARMUP + 1e-2
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (share - _WARMUP) / (1 - _WARMUP)))) + 1e-4


class _Best:
    """Validations on the way, and the weights of the best."""

    def __init__(self, flow: Flow, rated: tuple[Tensor, Tensor], patience: int) -> None:
        self.flow, self.rated, self.patience = flow, rated, patience
        self.loss, self.weights = math.inf, flow.state_dict()
        self.course: list[dict[str, float]] = []
        self.next_share, self.without_gain = 0.0, 0
        self.over = False

    def state(self) -> dict[str, Any]:
        """All but the weights, JSON-able."""
        told = ("loss", "course", "next_share", "without_gain", "over")
        return {name: getattr(self, name) for name in told}

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """As it was."""
        self.weights = dict(weights)
        for name, value in state.items():
            setattr(self, name, value)

    def due(self, share: float) -> bool:
        return not self.over and share >= self.next_share

    def rate(self, seen: int, share: float) -> None:
        """Validate; it is over where the budget is spent, or `patience` validations brought nothing."""
        with torch.no_grad():
            x, given = self.rated
            parts = [_loss(self.flow, a, b).item() * len(a) for a, b in zip(x.split(8_192), given.split(8_192), strict=True)]
        loss = sum(parts) / len(x)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the prior's loss is not finite after {seen} stars: lower prior.learning_rate, or look at `gaiadask validate`"
            )
        self.course.append({"rows_seen": seen, "validation_loss": loss})
        self.next_share = min(share + 1 / _VALIDATIONS, 1.0)
        self.without_gain = 0 if loss < self.loss else self.without_gain + 1
        if loss < self.loss:
            self.loss, self.weights = loss, {name: tensor.clone() for name, tensor in self.flow.state_dict().items()}
        self.over = share >= 1.0 or self.without_gain >= self.patience
