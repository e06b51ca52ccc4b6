"""The training of one rank, as a function and as a process of its own.

    (cat assignment.json; sleep infinity) | python -m gaiadask.training.process

The first line on stdin is an `Assignment` as JSON: the store, the run, its partition files, the fitted transform, the
[model] and [training] sections, the model's key, and which rank of how many this is. Events come on stdout, one JSON
object a line:

    {"event": "progress", "rows_seen": …, "rows_per_s": …, "loss": …}      about once a second
    {"event": "validated", "rows_seen": …, "validation_loss": …, …}        every training.validate_every_rows
    {"event": "done", "rows_seen": …, "best_rows_seen": …, …}              the model is in the store; exit code 0
    {"event": "error", "type": …, "message": …}                            exit code 1

stdin must stay open: when it closes, whoever started the rank is gone or wants it gone, and the rank ends at once. It can
be killed at any time. Each validation first adds its record to metrics.jsonl and then replaces the one checkpoint
(weights, best weights, optimiser, position among the stars); the same assignment, given again, goes on from there, and
metrics.jsonl loses records beyond it. A checkpoint of another key is ignored.

The schedule counts stars shown (`rows_seen`), not passes: by default the learning rate rises over the first part of the
budget and falls to nothing by its end; the KL weight rises over training.kl_warmup. Training stops early when training.patience
validations after the warm-up brought no lower validation loss. The model that is kept is the one of the lowest validation
loss. Test stars are never read.

On one GPU or one CPU nothing is to be set: the device is chosen (`"device": "auto"`), and on a CPU a rank takes
(cores - 1) / ranks_on_host threads unless training.threads says otherwise.
"""

from __future__ import annotations

import logging
import math
import os
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gaiadask.errors import TrainingError
from gaiadask.inputs.transform import Transform
from gaiadask.model.card import TrainingOutcome
from gaiadask.model.device import torch_device
from gaiadask.model.files import new_network, save_model
from gaiadask.model.losses import Loss, kl_weight, sample_posterior
from gaiadask.model.star_model import StarModel
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.assignment import Assignment, Report
from gaiadask.training.batches import Batch, Position, TrainBatches, validation_rows
from gaiadask.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from gaiadask.training.metrics import read_metrics, write_metrics
from gaiadask.training.objective import Objective, validate, value_errors
from gaiadask.training.schedule import learning_rate_factor
from gaiadask.training.tensorboard import Board

log = logging.getLogger(__name__)


PROGRESS_S = 1.0


LINEAR_START_ROWS = 50_000


def train(assignment: Assignment, report: Report) -> StarModel:
    """Train, or go on training, until the budget is spent or patience is; save the best model and return it.

    report: called with each event but "error". Raises TrainingError for a loss that is not finite, DataError for data that
    cannot train, StoreError for a store that cannot be read or written.
    """
    if assignment.world_size != 1:
        raise TrainingError(f"world_size is {assignment.world_size}: training with more than one rank is not there yet; use 1")
    rank = _Rank(assignment, report)
    rank.resume()
    rank.learn()
    return rank.finish()


class _Totals:
    """Sums of a loss over batches, kept on the device so that no step waits for one."""

    def __init__(self) -> None:
        self.steps = 0
        self._sum: Tensor | None = None

    def add(self, loss: Loss) -> None:
        terms = torch.stack([loss.total.detach(), loss.reconstruction.detach(), loss.kl.detach()])
        self._sum = terms if self._sum is None else self._sum + terms
        self.steps += 1

    def means(self) -> tuple[float | None, float | None, float | None]:
        """Of total, reconstruction and KL, nats a star; None before the first batch."""
        if self._sum is None:
            return None, None, None
        total, reconstruction, kl = (self._sum / self.steps).tolist()
        return total, reconstruction, kl


class _Rank:
    """The state of one rank between steps."""

    def __init__(self, assignment: Assignment, report: Report) -> None:
        self.told, self.report = assignment, report
        self.store, self.paths = Store(assignment.store), RunPaths(assignment.run)
        self.config, self.model_config = assignment.training, assignment.model
        self.transform = _transform(assignment)
        self.device = torch_device(assignment.device)
        self.batches = TrainBatches(
            self.store,
            assignment.partitions,
            self.transform,
            batch_rows=self.config.batch_rows // assignment.world_size,
            buffer_rows=self.config.buffer_rows,
            seed=self.config.seed,
            rank=assignment.rank,
            world_size=assignment.world_size,
            device=self.device,
            errors=self.model_config.error_share > 0,
        )
        self.validation = validation_rows(
            self.store, assignment.partitions, self.transform, self.config.validation_rows, errors=self.batches.errors
        ).to(self.device)
        torch.manual_seed(self.config.seed)
        self.network = new_network(self.transform, self.model_config).to(self.device)
        betas = (0.9, self.config.second_moment_decay)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=self.config.learning_rate, betas=betas, fused=True)
        self.objective = Objective.of(self.model_config, self.transform, self.device)
        self.noise = torch.Generator(device=self.device)
        self.rows_seen = self.resumed_from_rows = 0
        self.seconds = 0.0
        self.start = Position()
        self.best: dict[str, Tensor] = {}
        self.best_record: dict[str, Any] = {}
        self.validations_without_gain = 0
        self.records: list[dict[str, Any]] = []
        self.board: Board | None = None

    # Before ----------------------------------------------------------------------------------------------------------
    def resume(self) -> None:
        """Go on from this key's checkpoint, or begin: linear paths at the principal components, a first validation."""
        saved = read_checkpoint(self.store, self.paths.checkpoint)
        if saved is not None and saved.state["key"] == self.told.key:
            self._restore(saved)
            self._open_board()
            log.info("going on from the checkpoint at %d rows seen", self.rows_seen)
            return
        if saved is not None:
            log.info("the checkpoint of %s is of another key (%s); training from the start", self.paths.root, saved.state["key"])
        self.store.remove(self.paths.checkpoints)
        self.store.remove(self.paths.metrics)
        self.store.remove(self.paths.tensorboard)
        self._open_board()
        if self.model_config.linear_path:
            self.network.start_linear(self.batches.sample(LINEAR_START_ROWS).values, self.model_config.noise_scale)
        self._validate(_Totals())

    def _open_board(self) -> None:
        if self.config.tensorboard:
            self.board = Board(self.store, self.paths, self.resumed_from_rows)

    def _restore(self, saved: Checkpoint) -> None:
        saved.load_into(self.network, self.optimiser)
        state = saved.state
        self.best = {name: tensor.to(self.device) for name, tensor in saved.best.items()}
        self.best_record, self.validations_without_gain = state["best_record"], state["validations_without_gain"]
        self.rows_seen = self.resumed_from_rows = state["rows_seen"]
        self.seconds, self.start = state["seconds"], Position(*state["position"])
        self.batches.position = self.start
        self.records = [record for record in read_metrics(self.store, self.paths) if record["rows_seen"] <= self.rows_seen]
        write_metrics(self.store, self.paths, self.records)

    # During ----------------------------------------------------------------------------------------------------------
    def learn(self) -> None:
        """Steps until the budget or patience is spent."""
        if self._is_over():
            return
        totals, recent = _Totals(), _Totals()
        began = told = time.monotonic()
        seconds_before, rows_told = self.seconds, self.rows_seen
        next_validation = self._next_validation()
        self._seed_noise()
        for batch in self.batches.stream(self.start):
            loss = self._step(batch)
            totals.add(loss)
            recent.add(loss)
            now = time.monotonic()
            self.seconds = seconds_before + now - began
            if now - told >= PROGRESS_S:
                self._tell(recent, (self.rows_seen - rows_told) / (now - told))
                recent, told, rows_told = _Totals(), now, self.rows_seen
            if self.rows_seen >= next_validation:
                self._validate(totals)
                if self._is_over():
                    return
                totals, next_validation = _Totals(), self._next_validation()
                self._seed_noise()

    def _step(self, batch: Batch) -> Loss:
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        self.network.train()
        loss = self._loss(batch, self._kl_weight(), self.noise)
        self.optimiser.zero_grad(set_to_none=True)
        (loss.total * self.objective.unit).backward()
        self._average_gradients()
        if self.config.gradient_norm:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_norm)
        self.optimiser.step()
        self.rows_seen += len(batch) * self.told.world_size
        return loss

    def _average_gradients(self) -> None:
        """Where ranks will meet (an all-reduce over world_size); one rank has nothing to average."""

    def _loss(self, batch: Batch, weight: float, noise: torch.Generator) -> Loss:
        mean, log_variance = self.network.encode(batch.values, batch.condition)
        z = sample_posterior(mean, log_variance, noise)
        rebuilt = self.network.decode(z, self._shown_to_the_decoder(batch.condition, noise))
        return self.objective(batch, rebuilt, mean, log_variance, weight, self.model_config.free_bits)

    def _shown_to_the_decoder(self, condition: Tensor, noise: torch.Generator) -> Tensor:
        """The condition, half of the stars as if nothing were null.

        So a star that lacks values is also rebuilt by what rebuilds the complete ones, and its latents mean what theirs do:
        `decode(..., impute=True)` asks that for the values that it lacks.
        """
        bits = len(self.transform.null_groups)
        if not bits:
            return condition
        kept = torch.rand(len(condition), 1, generator=noise, device=condition.device) < 0.5
        return torch.cat([condition[:, :-bits], condition[:, -bits:] * kept], dim=1)

    def _learning_rate(self) -> float:
        return self.config.learning_rate * learning_rate_factor(self.rows_seen / self.config.rows_seen, self.config)

    def _kl_weight(self) -> float:
        return kl_weight(self.rows_seen, self.config.rows_seen, self.config.kl_warmup, self.model_config.kl_weight)

    def _next_validation(self) -> int:
        every = self.config.validate_every_rows
        return min((self.rows_seen // every + 1) * every, self.config.rows_seen)

    def _seed_noise(self) -> None:
        # Anew after each checkpoint, so that a resumed rank draws what an unbroken one draws.
        seeds = np.random.SeedSequence([self.config.seed, self.told.rank, self.rows_seen])
        self.noise.manual_seed(int(seeds.generate_state(1)[0]))

    def _tell(self, recent: _Totals, rows_per_s: float) -> None:
        loss = recent.means()[0]
        self._check_finite(loss, "loss")
        if self.board:
            self.board.progress(self.rows_seen, loss, rows_per_s)
        self.report({"event": "progress", "rows_seen": self.rows_seen, "rows_per_s": rows_per_s, "loss": loss})

    def _check_finite(self, loss: float | None, what: str) -> None:
        if loss is not None and not math.isfinite(loss):
            raise TrainingError(
                f"the {what} is {loss} at {self.rows_seen} rows seen (last good: {self._last_good()}). Try a lower "
                f"training.learning_rate (now {self.config.learning_rate}), or a larger model.noise_scale "
                f"(now {self.model_config.noise_scale}), and look at the statistics for values far beyond the rest"
            )

    def _last_good(self) -> str:
        return f"{self.records[-1]['validation_loss']:.4g} at {self.records[-1]['rows_seen']}" if self.records else "none"

    def _validate(self, totals: _Totals) -> None:
        """Validate, tell, and leave a record and a checkpoint."""
        found = validate(self.network, self.validation, self.objective, self.model_config.kl_weight)
        loss, reconstruction, kl = totals.means()
        for value, what in ((found.loss, "validation loss"), (loss, "loss")):
            self._check_finite(value, what)
        record = {
            "rows_seen": self.rows_seen,
            "seconds": round(self.seconds, 3),
            "learning_rate": self._learning_rate(),
            "kl_weight": self._kl_weight(),
            "train_loss": loss,
            "train_reconstruction": reconstruction,
            "train_kl": kl,
            "validation_loss": found.loss,
            "validation_reconstruction": found.reconstruction,
            "validation_kl": found.kl,
            "median_error": dict(zip(self.transform.value_names, found.median_error, strict=True)),
            "active_units": found.active_units,
            "latents": found.latents,
            "attempt": self.told.attempt,
            "resumed_from_rows": self.resumed_from_rows,
        }
        if not self.best_record or found.loss < self.best_record["validation_loss"]:
            self.best = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
            self.best_record, self.validations_without_gain = record, 0
        elif self.rows_seen > self.config.kl_warmup * self.config.rows_seen:
            self.validations_without_gain += 1
        self.records.append(record)
        write_metrics(self.store, self.paths, self.records)
        self._save_checkpoint()
        if self.board:
            self.board.validated(record)
        self.report({"event": "validated", **record})

    def _save_checkpoint(self) -> None:
        state = {
            "key": self.told.key,
            "rows_seen": self.rows_seen,
            "seconds": self.seconds,
            "position": list(self.batches.position),
            "best_record": self.best_record,
            "validations_without_gain": self.validations_without_gain,
        }
        write_checkpoint(self.store, self.paths.checkpoint, Checkpoint.of(self.network, self.best, self.optimiser, state))

    def _is_over(self) -> bool:
        return self.rows_seen >= self.config.rows_seen or self.validations_without_gain >= self.config.patience

    # After -----------------------------------------------------------------------------------------------------------
    def finish(self) -> StarModel:
        """Save the best weights as the run's model."""
        self.network.load_state_dict(self.best)
        summary = {
            "config": self.config.model_dump(mode="json"),
            "rows_seen": self.rows_seen,
            "best_rows_seen": self.best_record["rows_seen"],
            "stopped_early": self.rows_seen < self.config.rows_seen,
            "seconds": round(self.seconds, 3),
            "rows_per_s": round(self.rows_seen / self.seconds, 1) if self.seconds else None,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "validation_rows": len(self.validation),
            "device": str(self.device),
        }
        metrics = self.best_record
        outcome = TrainingOutcome.model_validate(
            {
                "key": self.told.key,
                "model": self.model_config,
                "training": summary,
                "metrics": metrics,
                "errors": value_errors(self.network, self.transform, self.validation),
                "metadata": self.told.metadata,
            }
        )
        model = save_model(self.store, self.paths, self.network.eval(), self.transform, outcome)
        kept = ("rows_seen", "best_rows_seen", "stopped_early", "seconds", "rows_per_s", "parameters")
        self.report({"event": "done", **{k: summary[k] for k in kept}, "validation_loss": metrics["validation_loss"]})
        return model


def set_threads(assignment: Assignment) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(assignment.training.threads or max(1, (cores - 1) // assignment.ranks_on_host))


def _transform(assignment: Assignment) -> Transform:
    try:
        return Transform.from_json(assignment.transform)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"the assignment's transform is not one that Transform.to_json wrote: {error!r}") from error
