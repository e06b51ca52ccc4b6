"""Fitting a conditional density: maximum likelihood over a budget of stars or seconds, with checkpoints."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from zuko.lazy import Flow

from gaiadask.config.sections import PriorConfig
from gaiadask.errors import TrainingError
from gaiadask.prior.card import DensityCard, FitStep
from gaiadask.prior.flows import Density, Gaussianised, one_thread
from gaiadask.prior.spline_flow import log_density, new_flow
from gaiadask.records import Record
from gaiadask.training.adam import Adam
from gaiadask.training.checkpoint import Checkpoint, CheckpointFile
from gaiadask.training.schedule import FLOW_CYCLE
from gaiadask.training.stopping import EarlyStopping

# Longer gradients are cut to this norm: a smaller one slows the first steps, a larger one lets a batch with outliers undo many.
_GRADIENT_NORM = 5.0
# Validations in a budget, each with a checkpoint: prior.patience counts them.
_VALIDATIONS = 10
# Validation stars at once: bounds memory; part of what a loss is, since sums depend on their order in the last bits.
_VALIDATION_ROWS = 8_192

# A column of the context with a smaller standard deviation is constant: what is left, as of positions all at one place, is the
# rounding of float32 numbers about 1, which scaled to 1 would make of every other place one that no star was near.
_CONSTANT = 1e-6

_CPU = torch.device("cpu")

Pairs = tuple[NDArray[np.floating], NDArray[np.floating]]
"""x, shape (n, d), and its context, shape (n, c)."""


class FittedDensity(NamedTuple):
    """A density and the record of its fit."""

    density: Density
    card: DensityCard


class Fit(NamedTuple):
    """A network, how many train stars there are, its loss on some of them (by their numbers, and how many were shown before), and on
    validation stars; nats a star."""

    network: nn.Module
    stars: int
    loss: Callable[[Tensor, int], Tensor]
    validation_loss: Callable[[], float]


class FitResult(NamedTuple):
    """How a fit went: stars shown, seconds, the lowest validation loss, and all of them."""

    rows_seen: int
    seconds: float
    validation_loss: float
    course: tuple[FitStep, ...]

    def card(self, features: int, context: int) -> DensityCard:
        """Of a density of so many columns, conditioned on so many numbers."""
        return DensityCard(features=features, context=context, **self._asdict())


class BestState(Record):
    """Of a checkpoint: the validations so far."""

    loss: float = Field(description="lowest validation loss")
    course: tuple[FitStep, ...] = Field(description="all validations")
    next_share: float = Field(description="share of the budget at which the next is due")
    without_gain: int = Field(description="validations since the lowest loss")
    over: bool = Field(description="whether the fit has ended")


class FitState(Record):
    """The part of a fit's checkpoint that is not tensors."""

    key: str = Field(description="of the prior")
    rows_seen: int = Field(description="stars shown so far")
    seconds: float = Field(description="of the fit so far, over all tries")
    best: BestState = Field(description="the validations so far")


@dataclass
class _Validations:
    """The validations of a fit: which is the best, when the next one is due, whether the fit has ended."""

    stopping: EarlyStopping
    course: list[FitStep] = field(default_factory=list)
    next_share: float = 0.0
    over: bool = False

    def state(self) -> BestState:
        return BestState(
            loss=self.stopping.loss, course=tuple(self.course), next_share=self.next_share,
            without_gain=self.stopping.without_gain, over=self.over,
        )  # fmt: skip

    def restore(self, checkpoint: Checkpoint, state: BestState) -> None:
        self.stopping.weights, self.stopping.loss = checkpoint.best, state.loss
        self.stopping.without_gain = state.without_gain
        self.course, self.next_share, self.over = list(state.course), state.next_share, state.over

    def is_due(self, share: float) -> bool:
        return not self.over and share >= self.next_share

    def add(self, loss: float, flow: Flow, rows_seen: int, share: float) -> None:
        self.course.append(FitStep(rows_seen=rows_seen, validation_loss=loss))
        self.next_share = min(share + 1 / _VALIDATIONS, 1.0)
        self.stopping.validated(loss, flow)
        self.over = share >= 1.0 or self.stopping.is_over


def fit_density(
    train: Pairs,
    validation: Pairs,
    config: PriorConfig,
    seed: int,
    report: Callable[[float], None] = lambda share: None,
    checkpoint: CheckpointFile | None = None,
    device: torch.device = _CPU,
) -> FittedDensity:
    """Fit p(x | context) to train stars; the weights of the lowest validation loss are chosen.

    Args:
        train: what the density is fitted to, x (n, d) and context (n, c).
        validation: what chooses the weights and stops the fit.
        config: the flow's shape and the budget: rows_seen or max_seconds, whichever ends first.
        seed: of the first weights and the order of stars.
        report: is called with the share of the budget that is spent.
        checkpoint: file that is written at each validation, and that the fit resumes from.
        device: where the flow is fitted, and stays.

    Raises:
        TrainingError: the loss is not finite.
        StoreError: the checkpoint is damaged or cannot be written.
    """
    x, context = train
    density = _untrained(x, context, config, seed)
    density.to(device)
    flow = density.flow
    with one_thread():
        stars, rated = ([part.to(device) for part in _tensors(density, pairs)] for pairs in (train, validation))
        parts = Fit(
            flow,
            len(x),
            lambda rows, rows_seen: _loss(flow, *(part[rows.to(device)] for part in stars)),
            lambda: _validation_loss(flow, rated),
        )
        done = fit(parts, config, seed, report, checkpoint)
    return FittedDensity(density, done.card(density.features, density.context))


def fit(
    parts: Fit, config: PriorConfig, seed: int, report: Callable[[float], None], checkpoint: CheckpointFile | None
) -> FitResult:
    """Train a network, which then has the weights of the lowest validation loss. Arguments and errors as of `fit_density`."""
    network, began, rows_seen = parts.network, time.monotonic(), 0
    validations = _Validations(EarlyStopping(config.patience))
    optimiser = Adam(network.parameters())
    if checkpoint and (read := checkpoint.read(FitState)):
        saved, state = read
        saved.load_into(network, optimiser)
        validations.restore(saved, state.best)
        rows_seen, began = state.rows_seen, began - state.seconds
    for rows in _batches(parts.stars, config.batch_rows, seed, rows_seen):
        seconds = time.monotonic() - began
        share = max(rows_seen / config.rows_seen, seconds / config.max_seconds if config.max_seconds else 0.0)
        if validations.is_due(share):
            validations.add(_rated(parts, rows_seen), network, rows_seen, share)
            if checkpoint:
                state = FitState(key=checkpoint.key, rows_seen=rows_seen, seconds=seconds, best=validations.state())
                checkpoint.write(Checkpoint.of(network, validations.stopping.weights, optimiser, state))
        if validations.over:
            break
        _step(network, optimiser, parts.loss(rows, rows_seen), config.learning_rate * FLOW_CYCLE.factor(share))
        rows_seen += len(rows)
        report(min(share, 1.0))
    network.load_state_dict(validations.stopping.weights)
    network.eval()
    return FitResult(rows_seen, time.monotonic() - began, validations.stopping.loss, tuple(validations.course))


def _untrained(x: NDArray[np.floating], context: NDArray[np.floating], config: PriorConfig, seed: int) -> Density:
    rough = Gaussianised.fit(x)
    width = context.std(0)
    torch.manual_seed(seed)
    return Density(
        rough, context.mean(0).astype(np.float64), np.where(width > _CONSTANT, width, 1.0).astype(np.float64),
        new_flow(x.shape[1], context.shape[1], config),
    )  # fmt: skip


def _step(network: nn.Module, optimiser: Adam, loss: Tensor, learning_rate: float) -> None:
    optimiser.zero_gradients()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), _GRADIENT_NORM)
    optimiser.step(learning_rate)


def _tensors(density: Density, stars: Pairs) -> tuple[Tensor, Tensor]:
    x, context = stars
    return torch.from_numpy(density.rough.forward(x).astype(np.float32)), density.scaled_context(context)


def _loss(flow: Flow, x: Tensor, context: Tensor) -> Tensor:
    """Minus log-likelihood, nats a star."""
    return -log_density(flow, x, context if context.shape[1] else None).mean()


def _validation_loss(flow: Flow, rated: list[Tensor]) -> float:
    """Minus log-likelihood of validation stars, nats a star."""
    x, context = (part.split(_VALIDATION_ROWS) for part in rated)
    return sum(_loss(flow, a, b).item() * len(a) for a, b in zip(x, context, strict=True)) / len(rated[0])


def _rated(parts: Fit, rows_seen: int) -> float:
    with torch.no_grad():
        loss = parts.validation_loss()
    if not math.isfinite(loss):
        raise TrainingError(
            f"the prior's loss is not finite after {rows_seen} stars: lower prior.learning_rate, or run `gaiadask validate CONFIG`"
        )
    return loss


def _batches(n: int, rows: int, seed: int, rows_seen: int) -> Iterator[Tensor]:
    """Row numbers of shuffled batches, for ever, after those of the first `rows_seen` rows; rows that do not fill a batch are left
    out of a pass."""
    rows = min(rows, n)
    passed, first = divmod(rows_seen // rows, n // rows)
    for number in itertools.count(passed):
        order = torch.from_numpy(np.random.default_rng([seed, number]).permutation(n))
        yield from order[: n // rows * rows].split(rows)[first:]
        first = 0
