"""The training of one rank: begin or resume, train, validate, save.

It can be killed at any time. Each validation first adds its record to metrics.jsonl and then replaces the one checkpoint (weights,
best weights, optimiser, position in the stream of batches); the same assignment, given again, resumes from there, and metrics.jsonl
loses records beyond it. A checkpoint of another key is ignored.

The schedule counts stars shown (`rows_seen`), not passes: by default the learning rate rises over the first part of the budget and
falls to 0 by its end; the KL weight rises over training.kl_warmup. Training stops early when training.patience validations after the
warm-up brought no lower validation loss. The model that is saved is the one of the lowest validation loss. Test stars are never read.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from gaiadask.errors import TrainingError
from gaiadask.inputs.transform import Transform
from gaiadask.model.card import MetricsRecord, TrainingOutcome, TrainingSummary
from gaiadask.model.device import torch_device
from gaiadask.model.files import save_model
from gaiadask.model.losses import Loss
from gaiadask.model.star_model import StarModel
from gaiadask.records import Record
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.assignment import Assignment
from gaiadask.training.batches import StreamPosition, TrainBatches
from gaiadask.training.checkpoint import Checkpoint, CheckpointFile
from gaiadask.training.codes import Batch, Codec
from gaiadask.training.events import Done, Progress, Report, Validated
from gaiadask.training.group import Group, join_group
from gaiadask.training.metrics import read_metrics, write_metrics
from gaiadask.training.objective import validate, value_errors
from gaiadask.training.schedule import learning_rate
from gaiadask.training.step import Learner, kl_weight_now, new_learner, seed_noise, step
from gaiadask.training.stopping import EarlyStopping
from gaiadask.training.tensorboard import Board
from gaiadask.training.validation import read_validation

log = logging.getLogger(__name__)

PROGRESS_S = 1.0
"""Seconds between progress events: often enough to be watched, seldom enough to cost nothing (each waits for the device)."""
LINEAR_START_ROWS = 50_000
"""Train stars whose principal components the network starts at: a hundred columns' covariance is known to a few per cent."""


@dataclass(frozen=True, eq=False)
class Task:
    """What one rank works on and with, from its first step to its last."""

    assignment: Assignment
    store: Store
    paths: RunPaths
    transform: Transform
    group: Group
    batches: TrainBatches
    validation: Batch
    learner: Learner

    @property
    def checkpoint(self) -> CheckpointFile:
        return CheckpointFile(self.store, self.paths.checkpoint, self.assignment.key)


@dataclass
class State:
    """How far a training is.

    best: the record of the validation whose weights are the best so far. records: of all validations. seconds: of training, over
    all tries.
    """

    stopping: EarlyStopping
    report: Report
    rows_seen: int = 0
    resumed_from_rows: int = 0
    seconds: float = 0.0
    best: MetricsRecord | None = None
    records: list[MetricsRecord] = field(default_factory=list)
    board: Board | None = None


class SavedState(Record):
    """The part of a checkpoint that is not tensors."""

    key: str = Field(description="of the model")
    rows_seen: int = Field(description="stars shown so far")
    seconds: float = Field(description="of training so far, over all tries")
    position: StreamPosition = Field(description="in the stream of batches")
    best_record: MetricsRecord = Field(description="the validation whose weights are the best so far")
    validations_without_gain: int = Field(description="validations since, counted by patience")


class MeanLoss:
    """The mean of a loss over batches, summed on the device so that no step waits for it."""

    def __init__(self) -> None:
        self._batches = 0
        self._sum: Tensor | None = None

    def add(self, loss: Loss) -> None:
        terms = torch.stack([loss.total.detach(), loss.reconstruction.detach(), loss.kl.detach()])
        self._sum = terms if self._sum is None else self._sum + terms
        self._batches += 1

    def terms(self) -> tuple[float | None, float | None, float | None]:
        """Mean total, reconstruction and KL, nats a star; None before the first batch."""
        if self._sum is None:
            return None, None, None
        total, reconstruction, kl = (self._sum / self._batches).tolist()
        return total, reconstruction, kl


def train(assignment: Assignment, report: Report) -> StarModel:
    """Train, or resume training, until the budget is spent or patience runs out; save the best model.

    Args:
        assignment: what to train, on which stars.
        report: is called with each event but `Failed`.

    Returns:
        The model that was saved.

    Raises:
        TrainingError: the loss is not finite, or there is more than one rank.
        DataError: the stars cannot be trained on.
        StoreError: the store cannot be read or written.
        ConfigurationError: the device does not exist on this machine.
    """
    task = _prepare(assignment)
    state = State(EarlyStopping(assignment.training.patience), report)
    if not _resume(task, state):
        _begin(task, state)
    _learn(task, state)
    return _finish(task, state)


# Before --------------------------------------------------------------------------------------------------------------
def _prepare(assignment: Assignment) -> Task:
    group = join_group(assignment.rank, assignment.world_size)
    store, model, training = Store(assignment.store, assignment.fences), assignment.model, assignment.training
    transform = _transform(assignment)
    device = torch_device(assignment.device)
    codec = Codec.model_validate(assignment.codec)
    validation = read_validation(store, assignment.validation, transform, training.validation_rows, errors=codec.sigmas > 0)
    batches = TrainBatches(
        store, assignment.partitions, transform, codec, batch_rows=training.batch_rows,
        buffer_rows=training.buffer_rows, seed=training.seed, group=group, device=device, file_rows=assignment.partition_rows,
    )  # fmt: skip
    learner = new_learner(transform, model, training, device)
    return Task(assignment, store, RunPaths(assignment.run), transform, group, batches, validation.to(device), learner)


def _transform(assignment: Assignment) -> Transform:
    try:
        return Transform.from_json(assignment.transform)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"the assignment's transform is not one that Transform.to_json wrote: {error!r}") from error


def _resume(task: Task, state: State) -> bool:
    """Set everything to this key's checkpoint, if there is one."""
    read = task.checkpoint.read(SavedState)
    if read is None:
        return False
    checkpoint, saved = read
    checkpoint.load_into(task.learner.network, task.learner.optimiser)
    state.stopping.weights = {name: tensor.to(task.batches.device) for name, tensor in checkpoint.best.items()}
    state.stopping.loss, state.stopping.without_gain = saved.best_record.validation_loss, saved.validations_without_gain
    state.best = saved.best_record
    state.rows_seen = state.resumed_from_rows = saved.rows_seen
    state.seconds, task.batches.position = saved.seconds, saved.position
    state.records = [record for record in read_metrics(task.store, task.paths) if record.rows_seen <= state.rows_seen]
    write_metrics(task.store, task.paths, state.records)
    _open_board(task, state)
    log.info("resuming from the checkpoint at %d rows seen", state.rows_seen)
    return True


def _begin(task: Task, state: State) -> None:
    """Start anew: linear paths at the principal components, a first validation."""
    for name in (task.paths.checkpoints, task.paths.metrics, task.paths.tensorboard):
        task.store.remove(name)
    _open_board(task, state)
    model = task.assignment.model
    if model.linear_path:
        task.learner.network.start_linear(task.batches.sample(LINEAR_START_ROWS).values, model.noise_scale)
    _validate(task, state, MeanLoss())


def _open_board(task: Task, state: State) -> None:
    if task.assignment.training.tensorboard:
        state.board = Board(task.store, task.paths, state.resumed_from_rows)


# During --------------------------------------------------------------------------------------------------------------
def _learn(task: Task, state: State) -> None:
    """Steps until the budget is spent or patience runs out."""
    if _is_over(task, state):
        return
    since_validation, since_event = MeanLoss(), MeanLoss()
    began = last_event = time.monotonic()
    seconds_before, rows_at_event = state.seconds, state.rows_seen
    next_validation = _next_validation(task, state)
    seed_noise(task.learner, task.group.rank, state.rows_seen)
    for share in task.batches.stream(task.batches.position):
        loss = step(task.learner, share, state.rows_seen, task.group)
        state.rows_seen += task.assignment.training.batch_rows
        since_validation.add(loss)
        since_event.add(loss)
        now = time.monotonic()
        state.seconds = seconds_before + now - began
        if now - last_event >= PROGRESS_S:
            _report_progress(task, state, since_event, (state.rows_seen - rows_at_event) / (now - last_event))
            since_event, last_event, rows_at_event = MeanLoss(), now, state.rows_seen
        if state.rows_seen >= next_validation:
            _validate(task, state, since_validation)
            if _is_over(task, state):
                return
            since_validation, next_validation = MeanLoss(), _next_validation(task, state)
            seed_noise(task.learner, task.group.rank, state.rows_seen)


def _is_over(task: Task, state: State) -> bool:
    return state.rows_seen >= task.assignment.training.rows_seen or state.stopping.is_over


def _next_validation(task: Task, state: State) -> int:
    training = task.assignment.training
    return min((state.rows_seen // training.validate_every_rows + 1) * training.validate_every_rows, training.rows_seen)


def _report_progress(task: Task, state: State, since_event: MeanLoss, rows_per_s: float) -> None:
    loss = since_event.terms()[0]
    _check_finite(task, state, loss, "loss")
    if state.board:
        state.board.progress(state.rows_seen, loss, rows_per_s)
    state.report(Progress(rows_seen=state.rows_seen, rows_per_s=rows_per_s, loss=loss))


def _validate(task: Task, state: State, since_validation: MeanLoss) -> None:
    """Rate the network on validation stars; leave a record and a checkpoint, and report."""
    learner, training = task.learner, task.assignment.training
    rating = validate(learner.network, task.validation, learner.objective, task.assignment.model.kl_weight)
    loss, reconstruction, kl = since_validation.terms()
    _check_finite(task, state, rating.loss, "validation loss")
    _check_finite(task, state, loss, "loss")
    record = MetricsRecord(
        rows_seen=state.rows_seen, seconds=round(state.seconds, 3),
        learning_rate=learning_rate(state.rows_seen, training), kl_weight=kl_weight_now(learner, state.rows_seen),
        train_loss=loss, train_reconstruction=reconstruction, train_kl=kl,
        validation_loss=rating.loss, validation_reconstruction=rating.reconstruction, validation_kl=rating.kl,
        median_error=dict(zip(task.transform.value_names, rating.median_error, strict=True)),
        active_units=rating.active_units, latents=rating.latents,
        attempt=task.assignment.attempt, resumed_from_rows=state.resumed_from_rows,
    )  # fmt: skip
    # During the warm-up a network is trained with a smaller KL weight than it is rated with, so its loss may well rise.
    warmed_up = state.rows_seen > training.kl_warmup * training.rows_seen
    if state.stopping.validated(rating.loss, learner.network, counts=warmed_up):
        state.best = record
    state.records.append(record)
    write_metrics(task.store, task.paths, state.records)
    _write_checkpoint(task, state)
    if state.board:
        state.board.validated(record)
    state.report(Validated(**dict(record)))


def _check_finite(task: Task, state: State, loss: float | None, name: str) -> None:
    if loss is not None and not math.isfinite(loss):
        last = state.records[-1] if state.records else None
        raise TrainingError(
            f"the {name} is {loss} at {state.rows_seen} rows seen "
            f"(last good: {f'{last.validation_loss:.4g} at {last.rows_seen}' if last else 'none'}). Try a lower "
            f"training.learning_rate (now {task.assignment.training.learning_rate}), or a larger model.noise_scale "
            f"(now {task.assignment.model.noise_scale}), and look at the statistics for values far beyond the rest"
        )


def _write_checkpoint(task: Task, state: State) -> None:
    assert state.best is not None
    saved = SavedState(
        key=task.assignment.key, rows_seen=state.rows_seen, seconds=state.seconds, position=task.batches.position,
        best_record=state.best, validations_without_gain=state.stopping.without_gain,
    )  # fmt: skip
    task.checkpoint.write(Checkpoint.of(task.learner.network, state.stopping.weights, task.learner.optimiser, saved))


# After ---------------------------------------------------------------------------------------------------------------
def _finish(task: Task, state: State) -> StarModel:
    """Save the best weights as the run's model."""
    assert state.best is not None
    network, assignment = task.learner.network, task.assignment
    network.load_state_dict(state.stopping.weights)
    summary = TrainingSummary(
        config=assignment.training,
        rows_seen=state.rows_seen,
        best_rows_seen=state.best.rows_seen,
        stopped_early=state.rows_seen < assignment.training.rows_seen,
        seconds=round(state.seconds, 3),
        rows_per_s=round(state.rows_seen / state.seconds, 1) if state.seconds else None,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        validation_rows=len(task.validation),
        device=str(task.batches.device),
    )
    outcome = TrainingOutcome(
        key=assignment.key,
        model=assignment.model,
        training=summary,
        metrics=state.best,
        errors=value_errors(network, task.transform, task.validation),
        metadata=assignment.metadata,
    )
    model = save_model(task.store, task.paths, network.eval(), task.transform, outcome)
    shared = summary.model_dump(include=set(Done.model_fields))
    state.report(Done(**shared, validation_loss=state.best.validation_loss))
    return model
