"""Stage tune, on request: which [model] and [training] rebuild stars best, by successive halving over the workers.

A candidate is a training rank of its own, several at once, one a worker.

**Score.** Candidates are compared by the mean over columns (beside position) of median |error| / IQR, of validation stars
rebuilt in physical units. Their own validation losses do not compare: an ELBO's unit is its noise scale, a squared error's
the transform's, and a column that one candidate derives another may learn.

**Going on.** A candidate's key holds all its options but the budget, so in the next rung its rank goes on from its checkpoint.
The learning-rate schedule spans the rung's whole budget, so each rung ends at rate 0: a higher final rate would make a candidate
look worse. The next rung starts at the share of its schedule that has been seen: a warm restart (Loshchilov and Hutter 2017,
arXiv:1608.03983). Early stopping is off; the rung's budget ends training.

The search depends on the statistics, on [model] and [training], and on [tune]. Its record, tune.json, is written after each rung: a
search that was killed goes on from there. Test stars are never read.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from gaiadask.cluster.workers import Task
from gaiadask.config.sections import Config
from gaiadask.decode import decode
from gaiadask.encode import encode
from gaiadask.errors import (
    DamagedFileError,
    DataError,
    GaiadaskError,
    LostRankError,
    MissingFileError,
    MissingStageError,
    TrainingError,
)
from gaiadask.model.source import ModelSource
from gaiadask.progress import reported
from gaiadask.quality.reconstruction import rate_columns, summarise
from gaiadask.records import JsonObject, StageResult
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageWork
from gaiadask.stages.statistics import read_statistics
from gaiadask.stages.train import assignment, write_validation_stars
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.events import Done, RankEvent
from gaiadask.training.search import (
    RUNG_OPTIONS,
    Candidate,
    CandidateRecord,
    RungRecord,
    SearchRecord,
    candidates,
    options_text,
    read_search,
)

log = logging.getLogger(__name__)

NO_PATIENCE_LIMIT = 10**9
"""More validations without gain than any rung has: early stopping is off."""
_ERRORS_SHOWN = 10


class TuneResult(StageResult):
    """Result of the stage tune."""

    candidates: int = Field(description="combinations that were tried")
    best: JsonObject = Field(description="options of the best one")
    score: float = Field(description="its mean over columns beside position of median |error| / IQR, validation stars")

    def summary(self) -> str:
        return f"{self.candidates:,} candidates; the best rebuilds validation stars within {self.score:.4f} IQR"


# Scores ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Score:
    """Mean and worst over columns beside position of median |error| / IQR; worst_column had the worst."""

    score: float
    worst: float
    worst_column: str


@dataclass(frozen=True)
class Scoring:
    """Scores a candidate; for workers."""

    store: Store
    run: RunPaths
    stars: int
    device: str = "cpu"

    def __call__(self, candidate: Candidate) -> Score:
        """Raises DataError where the model loses more than half the values of a column."""
        model = ModelSource(self.store, self.run.candidate(candidate.name), candidate.key, self.device).load()
        with self.store.open_parquet(self.run.tuning_validation) as file:
            real = file.read().slice(0, self.stars)
        rebuilt, transform = decode(encode(real, model), model), model.transform
        median = summarise(
            rate_columns(real, rebuilt, transform.columns, transform.release, transform.derived)
        ).beside_position.median
        if not math.isfinite(median.mean):
            raise DataError(f"the error of {median.worst_column} is not finite: more than half its values are lost")
        return Score(median.mean, median.worst, str(median.worst_column))


@dataclass(frozen=True)
class _ScoreOrReason:
    """Score of a candidate, or the reason why it has none: a failed candidate does not stop the search."""

    scoring: Scoring

    def __call__(self, candidate: Candidate) -> Score | str:
        try:
            return self.scoring(candidate)
        except DataError as error:
            return str(error)


# The search -----------------------------------------------------------------------------------------------------------
def _inputs(context: Context) -> JsonObject:
    config = context.config
    return {
        "statistics": context.key("statistics"), "model": config.model.for_key(), "training": config.training.for_key(*RUNG_OPTIONS),
        "tune": config.tune.for_key(), "latent": config.latent.for_key(),
    }  # fmt: skip


def _make(context: Context, key: str) -> TuneResult:
    store, run, tune = context.store, context.run, context.config.tune
    everyone = candidates(context.config, context.key("statistics"))
    search = _Search(context, _begun(store, run, key) or _new_record(key, tune.factor, everyone))
    write_validation_stars(
        context, run.tuning_validation, max(tune.validation_rows, *(c.config.training.validation_rows for c in everyone))
    )
    left = everyone
    for rung in itertools.count():
        passed_on = math.ceil(len(left) / tune.factor)
        left = search.run_rung(left, rung)[:passed_on]
        if not left:
            raise TrainingError(_all_failed(search.record))
        if len(left) == 1:
            break
    record = search.record.model_copy(update={"best": left[0].name})
    store.write_json(run.tuned, record.to_json())
    for candidate in everyone:  # the curves stay, the weights go
        own = run.candidate(candidate.name)
        context.remove(own.checkpoints, own.card, own.model)
    best = record.candidates[left[0].name]
    return TuneResult(candidates=len(everyone), best=best.options, score=best.rungs[-1].score)


def _new_record(key: str, factor: int, everyone: Sequence[Candidate]) -> SearchRecord:
    records = {c.name: CandidateRecord(options=dict(c.options)) for c in everyone}
    return SearchRecord(key=key, factor=factor, candidates=records)


def _begun(store: Store, run: RunPaths, key: str) -> SearchRecord | None:
    """Read the record of an interrupted search with this key; remove the files of any other search."""
    record = store.read_record_if_there(run.tuned, SearchRecord)
    if record is not None and record.key == key:
        return record
    store.remove(run.tuned)
    store.remove(run.tuning)
    return None


class _Search:
    """A search under way: its record grows rung by rung."""

    def __init__(self, context: Context, record: SearchRecord) -> None:
        self.context, self.record = context, record

    def run_rung(self, entered: Sequence[Candidate], rung: int) -> list[Candidate]:
        """Train and score those that entered and have no score in this rung yet, and write the record.

        Returns:
            Those that did not fail, best first.
        """
        tune, records = self.context.config.tune, self.record.candidates
        waiting = [c for c in entered if len(records[c.name].rungs) <= rung and not records[c.name].error]
        if waiting:
            budget = tune.rows_seen * tune.factor**rung
            log.info("tune: rung %d, %d candidates of %d stars each", rung + 1, len(waiting), budget)
            trained = self._train(waiting, rung, budget)
            scores = self._score([c for c in waiting if isinstance(trained[c.name], Done)])
            for candidate in waiting:
                self._add(candidate, budget, trained[candidate.name], scores.get(candidate.name))
            self.context.store.write_json(self.context.run.tuned, self.record.to_json())
        left = [c for c in entered if not self.record.candidates[c.name].error]
        return sorted(left, key=lambda c: (self.record.candidates[c.name].rungs[rung].score, c.name))

    def _add(self, candidate: Candidate, budget: int, end: Done | GaiadaskError, score: Score | str | None) -> None:
        record = self.record.candidates[candidate.name]
        if isinstance(end, Done) and isinstance(score, Score):
            rung = RungRecord(
                budget=budget, score=score.score, worst=score.worst, worst_column=score.worst_column, rows_seen=end.rows_seen,
                seconds=end.seconds, parameters=end.parameters, validation_loss=end.validation_loss,
            )  # fmt: skip
            record = record.model_copy(update={"rungs": (*record.rungs, rung)})
        else:
            reason = str(score if isinstance(end, Done) else end)
            log.warning("tune: %s failed: %s", options_text(candidate.options), reason)
            record = record.model_copy(update={"error": reason})
        self.record = self.record.with_candidate(candidate.name, record)

    def _train(self, waiting: Sequence[Candidate], rung: int, budget: int) -> dict[str, Done | GaiadaskError]:
        """How each candidate's rank ended, by name. Raises what is not the candidate's fault."""
        context = self.context
        store, run, progress = context.store, context.run, context.progress
        before = budget // context.config.tune.factor if rung else 0
        statistics = read_statistics(store, run, context.key("statistics"))
        assigned = [assignment(context, statistics, c.key, _in_a_rung(c.config, budget), run.candidate(c.name)) for c in waiting]
        task, seen = f"rung {rung + 1}", {a.run: before for a in assigned}

        def report(name: str, event: RankEvent) -> None:
            rows = max(seen[name], getattr(event, "rows_seen", 0))
            progress.advance(task, rows - seen[name])
            seen[name] = rows

        with reported(progress, task, float(len(waiting) * (budget - before)), "stars"):
            ended = context.workers.train(assigned, report)
        for end in ended:
            if isinstance(end, LostRankError) or (
                isinstance(end, GaiadaskError) and not isinstance(end, TrainingError | DataError)
            ):
                raise end  # of the store or the machine: no candidate's fault, and what was trained is found again
        return dict(zip((c.name for c in waiting), ended, strict=True))

    def _score(self, trained: Sequence[Candidate]) -> dict[str, Score | str]:
        """The score of each candidate, or why it has none, by name."""
        context = self.context
        config = context.config
        scoring = _ScoreOrReason(Scoring(context.store, context.run, config.tune.validation_rows, config.cluster.device))
        task: Task[Candidate, Score | str] = Task("scores", label=lambda candidate: candidate.name)
        return dict(zip((c.name for c in trained), context.map(scoring, trained, task), strict=True))


def _in_a_rung(config: Config, budget: int) -> Config:
    """The configuration with the budget of a rung."""
    every = min(config.training.validate_every_rows, budget)
    training = {"rows_seen": budget, "patience": NO_PATIENCE_LIMIT, "validate_every_rows": every, "tensorboard": False, "ranks": 1}
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def _all_failed(record: SearchRecord) -> str:
    errors = [f"  {options_text(c.options)}: {c.error}" for c in record.candidates.values()]
    return "\n".join([f"each of the {len(errors)} candidates failed:", *errors[:_ERRORS_SHOWN]])


def _prepare(context: Context) -> None:
    """Raises ConfigurationError where there is nothing to choose from, or a combination is no configuration."""
    candidates(context.config, context.key("statistics"))


def _is_present(context: Context) -> bool:
    try:
        record = read_search(context.store, context.run)
    except (MissingStageError, MissingFileError, DamagedFileError):
        return False
    return record.best is not None and record.key == context.key("tune")


WORK = StageWork(
    _inputs, _make, TuneResult, prepare=_prepare, present=_is_present, files=lambda context: (context.run.tuned, context.run.tuning)
)
