"""The training of one rank: begin or resume, train, validate, save.

Where several ranks train one network, each takes its share of every batch and of the validation stars, all do the same steps, and
rank 0 alone writes; the others read its checkpoint when they start, and are given its weights and its rating at each validation.

It can be killed at any time. Each validation first adds its record to metrics.jsonl and then replaces the one checkpoint (weights,
best weights, optimiser, position in the stream of batches), and so does rank 0 between two validations every few
seconds, which changes nothing of what is trained; the same assignment, given again, resumes from there, and metrics.jsonl loses
records beyond it. A checkpoint of another key is ignored.

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

from gaiadask.errors import LostRankError, TrainingError
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
from gaiadask.training.events import Done, Progress, Report, Saved, Validated
from gaiadask.training.group import Group
from gaiadask.training.hidden import value_errors
from gaiadask.training.meeting import Place, join
from gaiadask.training.metrics import read_metrics, write_metrics
from gaiadask.training.objective import Validation, validate
from gaiadask.training.rounding import errors_by_bits, latent_precisions, reallocate
from gaiadask.training.schedule import learning_rate
from gaiadask.training.step import Learner, kl_weight_now, new_learner, step
from gaiadask.training.stopping import EarlyStopping
from gaiadask.training.tensorboard import Board
from gaiadask.training.validation import read_validation

log = logging.getLogger(__name__)

PROGRESS_S = 1.0
"""Seconds between progress events: often enough to be watched, seldom enough to cost nothing (each waits for the device)."""
SAVE_S = 2.0
"""Seconds between checkpoints: what is lost with a rank is less than what starting it anew takes."""
_SAVING_SHARE = 0.02
"""Of the time that checkpoints between validations may take at most: a slow store gets fewer."""
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
    def writes(self) -> bool:
        """Whether this rank is the one that writes."""
        return self.group.rank == 0

    @property
    def checkpoint(self) -> CheckpointFile:
        return CheckpointFile(self.store, self.paths.checkpoint, self.assignment.key)


@dataclass
class State:
    """How far a training is.

    best: the record of the validation whose weights are the best so far. since_validation: losses after the last validation, where
    training resumes between two. records: of all validations. seconds: of training, over all tries.
    """

    stopping: EarlyStopping
    report: Report
    rows_seen: int = 0
    resumed_from_rows: int = 0
    seconds: float = 0.0
    best: MetricsRecord | None = None
    since_validation: LossSums | None = None
    records: list[MetricsRecord] = field(default_factory=list)
    board: Board | None = None


class LossSums(Record):
    """Losses of a rank's stars, which means are made of."""

    stars: int = Field(description="how many")
    sums: tuple[float, float, float] = Field(description="of total, reconstruction and KL, nats")


class SavedState(Record):
    """The part of a checkpoint that is not tensors."""

    key: str = Field(description="of the model")
    rows_seen: int = Field(description="stars shown so far")
    seconds: float = Field(description="of training so far, over all tries")
    position: StreamPosition = Field(description="in the stream of batches")
    best_record: MetricsRecord = Field(description="the validation whose weights are the best so far")
    validations_without_gain: int = Field(description="validations since, counted by patience")
    since_validation: LossSums | None = Field(None, description="losses of rank 0 since the last validation; None: right after it")


class MeanLoss:
    """The mean of a loss over stars, summed on the device so that no step waits for it."""

    def __init__(self, sums: LossSums | None = None, device: torch.device | str = "cpu") -> None:
        self._stars = sums.stars if sums else 0
        self._sum = torch.tensor(sums.sums, dtype=torch.float64, device=device) if sums else None

    def add(self, terms: Tensor, stars: int) -> None:
        """The `_terms` of a share of a batch, and its number of stars."""
        self._sum = terms if self._sum is None else self._sum + terms
        self._stars += stars

    def sums(self) -> LossSums | None:
        """What the mean is made of, of this rank's stars; None before the first."""
        total, reconstruction, kl = self._sum.tolist() if self._sum is not None else (0.0, 0.0, 0.0)
        return LossSums(stars=self._stars, sums=(total, reconstruction, kl)) if self._stars else None

    def of_own(self) -> float | None:
        """Mean total over this rank's stars, nats a star; None before the first."""
        return float(self._sum[0]) / self._stars if self._sum is not None and self._stars else None

    def terms(self, group: Group) -> tuple[float | None, float | None, float | None]:
        """Mean total, reconstruction and KL over all ranks' stars, nats a star; None before the first batch."""
        if self._sum is None:
            return None, None, None
        total, reconstruction, kl, stars = group.all_sum(torch.cat([self._sum, self._sum.new_tensor([self._stars])])).tolist()
        return total / stars, reconstruction / stars, kl / stars


def _terms(loss: Loss, batch_rows: int) -> Tensor:
    """Total, reconstruction and KL of a share of a batch, summed over its stars, nats; shape (3,)."""
    return batch_rows * torch.stack([loss.total.detach(), loss.reconstruction.detach(), loss.kl.detach()]).double()


@dataclass
class Saving:
    """When the next checkpoint between two validations is due. since: when the last one was written."""

    since: float
    seconds: float = field(default_factory=lambda: SAVE_S)

    def is_due(self, now: float) -> bool:
        """Whether it is time."""
        return now - self.since >= self.seconds

    def took(self, seconds: float) -> None:
        """One was written just now, in so many seconds."""
        self.since, self.seconds = time.monotonic(), max(SAVE_S, seconds / _SAVING_SHARE)


def train(assignment: Assignment, report: Report) -> StarModel | None:
    """Train, or resume training, until the budget is spent or patience runs out; rank 0 saves the best model.

    Args:
        assignment: what to train, on which stars.
        report: is called with each event but `Failed`.

    Returns:
        The model that was saved; None of the other ranks.

    Raises:
        TrainingError: the loss is not finite, or the device has not the memory.
        LostRankError: another rank is gone.
        ClusterError: the ranks do not find each other.
        DataError: the stars cannot be trained on.
        StoreError: the store cannot be read or written.
        ConfigurationError: the device does not exist on this machine.
    """
    try:
        task = _prepare(assignment)
        state = State(EarlyStopping(assignment.training.patience), report)
        if not _resume(task, state):
            _begin(task, state)
        _learn(task, state)
        return _finish(task, state)
    except torch.OutOfMemoryError as error:
        training = assignment.training
        raise TrainingError(
            f"rank {assignment.rank}: the GPU has not enough memory ({str(error).splitlines()[0]}). Lower training.buffer_rows (now "
            f"{training.buffer_rows}) or training.batch_rows (now {training.batch_rows}), or see what else runs on it"
        ) from error


# Before --------------------------------------------------------------------------------------------------------------
def _prepare(assignment: Assignment) -> Task:
    device = torch_device(assignment.device)
    group = join(Place(assignment.rank, assignment.world_size, assignment.meeting, assignment.listening), device)
    store, model, training = Store(assignment.store, assignment.fences), assignment.model, assignment.training
    transform = _transform(assignment)
    codec = Codec.model_validate(assignment.codec)
    validation = read_validation(store, assignment.validation, transform, training.validation_rows, errors=codec.sigmas > 0)
    batches = TrainBatches(
        store, assignment.partitions, transform, codec, batch_rows=training.batch_rows, buffer_rows=training.buffer_rows,
        seed=training.seed, group=group, device=device, file_rows=assignment.partition_rows,
    )  # fmt: skip
    learner = new_learner(transform, model, training, device, assignment.bits)
    return Task(assignment, store, RunPaths(assignment.run), transform, group, batches, validation.to(device), learner)


def _transform(assignment: Assignment) -> Transform:
    try:
        return Transform.from_json(assignment.transform)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"the assignment's transform is not one that Transform.to_json wrote: {error!r}") from error


def _resume(task: Task, state: State) -> bool:
    """Set everything to this key's checkpoint, if there is one."""
    read = task.checkpoint.read(SavedState)
    _agree_on_the_beginning(task, read[1].rows_seen if read else -1)
    if read is None:
        return False
    checkpoint, saved = read
    checkpoint.load_into(task.learner.network, task.learner.optimiser)
    state.stopping.weights = {name: tensor.to(task.batches.device) for name, tensor in checkpoint.best.items()}
    state.stopping.loss, state.stopping.without_gain = saved.best_record.validation_loss, saved.validations_without_gain
    state.best = saved.best_record
    state.rows_seen = state.resumed_from_rows = saved.rows_seen
    state.seconds, task.batches.position = saved.seconds, saved.position
    if task.writes:
        state.since_validation = saved.since_validation
        state.records = [record for record in read_metrics(task.store, task.paths) if record.rows_seen <= state.rows_seen]
        write_metrics(task.store, task.paths, state.records)
        _open_board(task, state)
    log.info("resuming from the checkpoint at %d rows seen", state.rows_seen)
    return True


def _agree_on_the_beginning(task: Task, rows_seen: int) -> None:
    """Raises LostRankError where this rank begins at another checkpoint than rank 0; rows_seen: of it, -1 where there is none."""
    of_all = torch.tensor([rows_seen])
    task.group.broadcast([of_all])
    if of_all != rows_seen:
        raise LostRankError(
            f"rank {task.group.rank} reads another checkpoint ({rows_seen} rows seen) than rank 0 ({int(of_all)}) in "
            f"{task.store.uri_of(task.paths.checkpoint)}"
        )


def _begin(task: Task, state: State) -> None:
    """Start anew: linear paths at the principal components, a first validation."""
    if task.writes:
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
    batch_rows = task.assignment.training.batch_rows
    since_validation, since_event = MeanLoss(state.since_validation, task.batches.device), MeanLoss()
    began = last_event = time.monotonic()
    saving = Saving(began)
    seconds_before, rows_at_event = state.seconds, state.rows_seen
    next_validation = _next_validation(task, state)
    for share in task.batches.stream(task.batches.position):
        loss = step(task.learner, share, state.rows_seen, task.group)
        state.rows_seen += batch_rows
        terms = _terms(loss, batch_rows)
        for mean in (since_validation, since_event):
            mean.add(terms, len(share.stars))
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
            saving = Saving(time.monotonic())
        elif task.writes and saving.is_due(now):
            _save_between(task, state, since_validation)
            saving.took(time.monotonic() - now)
            state.report(Saved(rows_seen=state.rows_seen))


def _save_between(task: Task, state: State, since_validation: MeanLoss) -> None:
    """Write a checkpoint between two validations, of weights that training can go on from."""
    _check_finite(task, state, since_validation.of_own(), "loss")
    with torch.no_grad():
        _check_finite(
            task, state, float(sum(weights.double().sum() for weights in task.learner.network.parameters())), "sum of weights"
        )
    _write_checkpoint(task, state, since_validation.sums())


def _is_over(task: Task, state: State) -> bool:
    return state.rows_seen >= task.assignment.training.rows_seen or state.stopping.is_over


def _next_validation(task: Task, state: State) -> int:
    training = task.assignment.training
    return min((state.rows_seen // training.validate_every_rows + 1) * training.validate_every_rows, training.rows_seen)


def _report_progress(task: Task, state: State, since_event: MeanLoss, rows_per_s: float) -> None:
    loss = since_event.of_own()
    _check_finite(task, state, loss, "loss")
    if state.board:
        state.board.progress(state.rows_seen, loss, rows_per_s)
    state.report(Progress(rows_seen=state.rows_seen, rows_per_s=rows_per_s, loss=loss))


def _validate(task: Task, state: State, since_validation: MeanLoss) -> None:
    """Rate the network on validation stars; leave a record and a checkpoint, and report."""
    learner, training = task.learner, task.assignment.training
    loss, reconstruction, kl = since_validation.terms(task.group)
    _share_weights(task)
    if task.assignment.bits:
        reallocate(learner.network, task.validation, task.transform, task.group)
    rating = _rating(task)
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
    if task.writes:
        write_metrics(task.store, task.paths, state.records)
        _write_checkpoint(task, state)
    if state.board:
        state.board.validated(record)
    state.report(Validated(**dict(record)))


def _share_weights(task: Task) -> None:
    """Every rank continues from rank 0's weights and moments: processors of two kinds round differently, and add up what differs."""
    moments = task.learner.optimiser.moments
    # In an order of our own: a checkpoint's moments come in any.
    ordered = [moments[number][name] for number in sorted(moments) for name in sorted(moments[number])]
    task.group.broadcast([*task.learner.network.state_dict().values(), *ordered])


def _rating(task: Task) -> Validation:
    """The rating that every rank decides by: rank 0's, to the last bit."""
    learner = task.learner
    rating = validate(learner.network, task.validation, learner.objective, task.assignment.model.kl_weight, task.group)
    loss = torch.tensor([rating.loss], dtype=torch.float64)
    task.group.broadcast([loss])
    return rating._replace(loss=float(loss))


def _check_finite(task: Task, state: State, loss: float | None, name: str) -> None:
    if loss is not None and not math.isfinite(loss):
        last = state.records[-1] if state.records else None
        raise TrainingError(
            f"the {name} is {loss} at {state.rows_seen} rows seen "
            f"(last good: {f'{last.validation_loss:.4g} at {last.rows_seen}' if last else 'none'}). Try a lower "
            f"training.learning_rate (now {task.assignment.training.learning_rate}), or a larger model.noise_scale "
            f"(now {task.assignment.model.noise_scale}), and look at the statistics for values far beyond the rest"
        )


def _write_checkpoint(task: Task, state: State, since_validation: LossSums | None = None) -> None:
    assert state.best is not None
    saved = SavedState(
        key=task.assignment.key, rows_seen=state.rows_seen, seconds=state.seconds, position=task.batches.position,
        best_record=state.best, validations_without_gain=state.stopping.without_gain, since_validation=since_validation,
    )  # fmt: skip
    task.checkpoint.write(Checkpoint.of(task.learner.network, state.stopping.weights, task.learner.optimiser, saved))


# After ---------------------------------------------------------------------------------------------------------------
def _finish(task: Task, state: State) -> StarModel | None:
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
    model = _save(task, state.best, summary) if task.writes else None
    shared = summary.model_dump(include=set(Done.model_fields))
    state.report(Done(**shared, validation_loss=state.best.validation_loss))
    return model


def _save(task: Task, best: MetricsRecord, summary: TrainingSummary) -> StarModel:
    network, assignment = task.learner.network, task.assignment
    outcome = TrainingOutcome(
        key=assignment.key,
        model=assignment.model,
        training=summary,
        metrics=best,
        errors=value_errors(network, task.transform, task.validation),
        precisions=tuple(latent_precisions(network, task.validation, task.transform)) if assignment.bits else (),
        errors_by_bits=tuple(map(tuple, errors_by_bits(network, task.validation))) if assignment.bits else (),
        metadata=assignment.metadata,
    )
    return save_model(task.store, task.paths, network.eval(), task.transform, outcome)
