"""Architecture search: which [model] and [training] rebuild stars best, by successive halving over the cluster.

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) trains every candidate a little, keeps the best 1/factor,
trains those factor times as long, and so on until one is left. A candidate is a rank of its own (`gaiadask.training`), several
at once, one a worker.

**Score.** Candidates are compared by the mean over columns (beside position) of median |error| / IQR, of validation stars
rebuilt in physical units. Their own validation losses do not compare: an ELBO's unit is its noise scale, a squared error's
the transform's, and a column that one candidate derives another may learn.

**Going on.** A candidate's key holds all its options but the budget, so in the next rung its rank goes on from its checkpoint.
The schedule of the rate is one of the whole budget: each rung ends as a training of its length ends, with a rate of nothing
(a candidate that has not come to rest would look worse the higher its rate), and the next one begins at the share of its own
schedule that has been seen: a warm restart (Loshchilov and Hutter 2017, arXiv:1608.03983). Patience stops nobody here; rungs do.

The search depends on the statistics, on [model] and [training], and on [tune]. What it found lies in tune.json, written after
each rung: a search that was killed goes on from there. Test stars are never read.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gaiadask import catalogue
from gaiadask.catalogue import Partition
from gaiadask.cluster.ranks import train_ranks
from gaiadask.cluster.workers import over_partitions
from gaiadask.config.sections import Config
from gaiadask.config.toml import option_lines, parse_config, said_of
from gaiadask.decode import decode
from gaiadask.encode import encode
from gaiadask.errors import ConfigurationError, DataError, GaiadaskError, LostRankError, MissingStageError, TrainingError
from gaiadask.inputs.statistics import Statistics
from gaiadask.keys import digest
from gaiadask.model.files import load_model_cached
from gaiadask.quality.reconstruction import rate_columns, summarise
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.split import Part, chosen, hash64, hash_bound
from gaiadask.stages.context import Context, Inputs, Result, Stage
from gaiadask.stages.train import assignment
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

log = logging.getLogger(__name__)

NEVER = 10**9
"""A patience that nothing outlasts."""
_NOT_ITS_OWN = ("rows_seen", "patience", "validate_every_rows", "threads", "buffer_rows", "tensorboard")
"""Options of [training] that are the search's, or that of the machine: in no candidate's key."""


# Candidates -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Candidate:
    """options: what is tried, as "model.hidden": its value. config: the whole configuration with it. key: of its training."""

    options: Mapping[str, Any]
    config: Config
    key: str

    @property
    def name(self) -> str:
        return self.key[:8]


def candidates(config: Config, statistics_key: str) -> list[Candidate]:
    """Every combination of the values in [tune], or as many of them as it asks for, drawn without replacement.

    Raises ConfigurationError where there is nothing to choose from, or a combination is no configuration.
    """
    tune = config.tune
    tried = [
        (f"{section}.{option}", values) for section in ("model", "training") for option, values in getattr(tune, section).items()
    ]
    size = math.prod(len(values) for _, values in tried)
    if size < 2:
        raise ConfigurationError(
            "[tune] gives nothing to choose from: list two values or more for some option, "
            "as model = { hidden = [[256, 256, 256], [512]] }"
        )
    chosen: Sequence[int] = range(size)
    if 0 < tune.candidates < size:
        chosen = np.sort(np.random.default_rng(tune.seed).choice(size, tune.candidates, replace=False)).tolist()
    found = [_candidate(config, statistics_key, dict(_combination(tried, number))) for number in chosen]
    return list({candidate.key: candidate for candidate in found}.values())


def _combination(tried: Sequence[tuple[str, Sequence[Any]]], number: int) -> list[tuple[str, Any]]:
    """The combination of that number: the last option changes fastest."""
    pairs = []
    for option, values in reversed(tried):
        number, at = divmod(number, len(values))
        pairs.append((option, values[at]))
    return pairs[::-1]


def _candidate(config: Config, statistics_key: str, options: dict[str, Any]) -> Candidate:
    values = said_of(config)  # so that an option whose default depends on another one follows it
    for option, value in options.items():
        section, name = option.split(".")
        values[section][name] = value
    found = parse_config(values, where=f"[tune], the combination {_told(options)}")
    training = found.training.model_dump(mode="json", exclude=set(_NOT_ITS_OWN))
    return Candidate(
        options, found, digest({"statistics": statistics_key, "model": found.model.model_dump(mode="json"), "training": training})
    )


def _told(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{option} = {json.dumps(value)}" for option, value in options.items())


# Scores ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Score:
    """score, worst: mean and worst over columns beside position of median |error| / IQR; worst_column had the worst."""

    score: float
    worst: float
    worst_column: str


@dataclass(frozen=True)
class Scoring:
    """The score of a candidate, as a function for workers."""

    store: Store
    run: RunPaths

    def __call__(self, candidate: Candidate) -> Score:
        """Raises DataError where the model loses more than half the values of a column."""
        model = load_model_cached(self.store, self.run.candidate(candidate.name), candidate.key)
        with self.store.open_parquet(stars_name(self.run)) as file:
            real = file.read()
        rebuilt, transform = decode(encode(real, model), model), model.transform
        found = summarise(rate_columns(real, rebuilt, transform.columns, transform.release)).beside_position.median
        if not math.isfinite(found.mean):
            raise DataError(f"the error of {found.worst_column} is not finite: more than half its values are lost")
        return Score(found.mean, found.worst, str(found.worst_column))


def stars_name(run: RunPaths) -> str:
    """Of the file with the validation stars that scores are made of."""
    return f"{run.tuning}/validation.parquet"


def gather_validation_stars(store: Store, columns: Sequence[str], below: float, partition: Partition) -> pa.Table:
    """A partition's validation stars with a hash below `below` (a share of the hash's range)."""
    names = list(dict.fromkeys((SOURCE_ID, RA, DEC, *columns)))
    pieces = []
    for table in catalogue.iterate_partition(store, paths.CATALOGUE, partition.tile, names):
        ids = table[SOURCE_ID].to_numpy()
        pieces.append(table.filter(pa.array(chosen(ids, Part.VALIDATION, below))))
    return pa.concat_tables(pieces)


# The search -----------------------------------------------------------------------------------------------------------
def _inputs(context: Context) -> Inputs:
    config = context.config
    training = config.training.model_dump(exclude=set(_NOT_ITS_OWN))
    return {
        "statistics": context.key("statistics"), "model": config.model.model_dump(), "training": training,
        "tune": config.tune.model_dump(),
    }  # fmt: skip


def _make(context: Context, key: str) -> Result:
    store, run, tune = context.store, context.run, context.config.tune
    everyone = candidates(context.config, context.key("statistics"))
    record = _begun(store, run, key) or {
        "key": key, "score": "mean over columns beside position of median |error| / IQR, validation stars",
        "factor": tune.factor, "best": None,
        "candidates": {c.name: {"options": dict(c.options), "rungs": [], "error": None} for c in everyone},
    }  # fmt: skip
    _keep_validation_stars(context)
    left = everyone
    for rung in itertools.count():
        kept = math.ceil(len(left) / tune.factor)
        left = _rung(context, record, left, rung)[:kept]
        if not left:
            raise TrainingError(_all_failed(record))
        if len(left) == 1:
            break
    record["best"] = left[0].name
    store.write_json(run.tuned, record)
    for candidate in everyone:  # the curves stay, the weights go
        own = run.candidate(candidate.name)
        for name in (own.checkpoints, own.card, own.model):
            store.remove(name)
    best = record["candidates"][left[0].name]
    return {"candidates": len(everyone), "best": best["options"], "score": best["rungs"][-1]["score"]}


def _begun(store: Store, run: RunPaths, key: str) -> dict[str, Any] | None:
    """The record of this very search, as far as it came. Another one's candidates are removed."""
    if store.exists(run.tuned):
        record = store.read_json(run.tuned)
        if record["key"] == key:
            return dict(record)
    store.remove(run.tuned)
    store.remove(run.tuning)
    return None


def _keep_validation_stars(context: Context) -> None:
    store, run, config = context.store, context.run, context.config
    if store.exists(stars_name(run)):
        return
    below = hash_bound(Part.VALIDATION, config.tune.validation_rows, context.catalogue.rows)
    pieces = over_partitions(
        context.client, partial(gather_validation_stars, store, config.model_columns, below), context.catalogue.partitions,
        task="validation stars", name_of=lambda p: str(p.tile), progress=context.progress,
    )  # fmt: skip
    stars = pa.concat_tables(pieces)
    if not len(stars):
        raise DataError("no star of the catalogue is a validation star (1 in 10 is): the catalogue is too small to search on")
    order = np.argsort(hash64(stars[SOURCE_ID].to_numpy()), kind="stable")[: config.tune.validation_rows]
    with store.writing(stars_name(run)) as scratch:
        pq.write_table(stars.take(order), scratch, compression="zstd")


def _rung(context: Context, record: dict[str, Any], entered: Sequence[Candidate], rung: int) -> list[Candidate]:
    """Train and score those that entered and were not, yet; tune.json knows then. Those that did not fail, best first."""
    tune, found = context.config.tune, record["candidates"]
    waiting = [c for c in entered if len(found[c.name]["rungs"]) <= rung and not found[c.name]["error"]]
    if waiting:
        budget = tune.rows_seen * tune.factor**rung
        log.info("tune: rung %d, %d candidates of %d stars each", rung + 1, len(waiting), budget)
        trained = _train(context, waiting, rung, budget)
        scores = _score(context, [c for c in waiting if isinstance(trained[c.name], dict)])
        for candidate in waiting:
            event = trained[candidate.name]
            outcome = scores[candidate.name] if isinstance(event, dict) else event
            if isinstance(event, dict) and isinstance(outcome, Score):
                seen = {name: event[name] for name in ("rows_seen", "seconds", "parameters", "validation_loss")}
                found[candidate.name]["rungs"].append({"budget": budget, **asdict(outcome), **seen})
            else:
                found[candidate.name]["error"] = str(outcome)
                log.warning("tune: %s failed: %s", _told(candidate.options), outcome)
        context.store.write_json(context.run.tuned, record)
    kept = [c for c in entered if not found[c.name]["error"]]
    return sorted(kept, key=lambda c: (found[c.name]["rungs"][rung]["score"], c.name))


def _train(context: Context, waiting: Sequence[Candidate], rung: int, budget: int) -> dict[str, dict[str, Any] | GaiadaskError]:
    """The last event of each candidate's rank, or what it failed with, by name. Raises what is not the candidate's fault."""
    store, run, progress = context.store, context.run, context.progress
    before = budget // context.config.tune.factor if rung else 0
    statistics = Statistics.from_json(store.read_json(run.statistics))
    told = [
        assignment(store, context.catalogue, statistics, _in_a_rung(c.config, budget), run.candidate(c.name), c.key)
        for c in waiting
    ]
    task, seen = f"rung {rung + 1}", {a.run: before for a in told}

    def report(name: str, event: Mapping[str, Any]) -> None:
        rows = max(seen[name], int(event.get("rows_seen", 0)))
        progress.advance(task, rows - seen[name])
        seen[name] = rows

    progress.start(task, float(len(waiting) * (budget - before)), "stars")
    try:
        ended = train_ranks(context.client, [a.model_dump(mode="json") for a in told], report)
    finally:
        progress.finish(task)
    for end in ended:
        if isinstance(end, LostRankError) or (isinstance(end, GaiadaskError) and not isinstance(end, (TrainingError, DataError))):
            raise end  # of the store or the machine: no candidate's fault, and what was trained is found again
    return dict(zip((c.name for c in waiting), ended, strict=True))


def _in_a_rung(config: Config, budget: int) -> Config:
    """The configuration with the budget of a rung."""
    every = min(config.training.validate_every_rows, budget)
    training = {"rows_seen": budget, "patience": NEVER, "validate_every_rows": every, "tensorboard": False}
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def _score(context: Context, trained: Sequence[Candidate]) -> dict[str, Score | str]:
    """The score of each candidate, or why it has none, by name."""
    work = _Kept(Scoring(context.store, context.run))
    scores = over_partitions(context.client, work, trained, task="scores", name_of=lambda c: c.name, progress=context.progress)
    return dict(zip((c.name for c in trained), scores, strict=True))


@dataclass(frozen=True)
class _Kept:
    """Scoring, with what keeps a model from being scored as a result, in words: a candidate's failure is not the search's."""

    scoring: Scoring

    def __call__(self, candidate: Candidate) -> Score | str:
        try:
            return self.scoring(candidate)
        except DataError as error:
            return str(error)  # not the error itself, which for `over_partitions` is a partition's


def _all_failed(record: Mapping[str, Any]) -> str:
    errors = [f"  {_told(c['options'])}: {c['error']}" for c in record["candidates"].values()]
    return "\n".join([f"each of the {len(errors)} candidates failed:", *errors[:10]])


def _drop(context: Context) -> None:
    context.store.remove(context.run.tuned)
    context.store.remove(context.run.tuning)


TUNE = Stage("tune", "search [model] and [training] by successive halving", _inputs, _make, _drop)
AFTER = "statistics"


# What was found -------------------------------------------------------------------------------------------------------
def read_tuned(store: Store, run: RunPaths) -> dict[str, Any]:
    """tune.json. Raises MissingStageError where nothing was searched."""
    if not store.exists(run.tuned):
        raise MissingStageError(f"run {run.name!r} has no tune.json yet: make it with `gaiadask tune`")
    return dict(store.read_json(run.tuned))


def tuned_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of what was tried, the best first: options, parameters, score by rung, seconds.

    record: tune.json.
    """
    found = list(record["candidates"].values())
    options = list(found[0]["options"])
    budgets = sorted({rung["budget"] for c in found for rung in c["rungs"]})
    names = [option.split(".")[1] for option in options]  # no option of [model] is called as one of [training]
    head = [*names, "parameters", *(f"error at {budget / 1e6:g} M stars" for budget in budgets), "seconds", "worst column"]
    return head, [_row(c, options, budgets) for c in sorted(found, key=_order)]


def _order(candidate: Mapping[str, Any]) -> tuple[bool, int, float]:
    rungs = candidate["rungs"]
    return (bool(candidate["error"]), -len(rungs), rungs[-1]["score"] if rungs else math.inf)


def _row(candidate: Mapping[str, Any], options: Sequence[str], budgets: Sequence[int]) -> list[str]:
    rungs = {rung["budget"]: rung for rung in candidate["rungs"]}
    last = candidate["rungs"][-1] if rungs else None
    scores = [
        f"{rungs[b]['score']:.4f}" if b in rungs else ("failed" if candidate["error"] and b == budgets[0] else "–") for b in budgets
    ]
    end = [f"{last['seconds']:.0f}", f"{last['worst_column']} {last['worst']:.3f}"] if last else ["–", str(candidate["error"])]
    values = [json.dumps(candidate["options"][option]) for option in options]
    return [*values, f"{last['parameters']:,}" if last else "–", *scores, *end]


def tuned_markdown(record: Mapping[str, Any]) -> str:
    """`tuned_table` as Markdown."""
    head, rows = tuned_table(record)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def options_toml(options: Mapping[str, Any]) -> str:
    """A candidate's options as the lines of a configuration."""
    lines = []
    for section in ("model", "training"):
        own = {name.split(".")[1]: value for name, value in options.items() if name.startswith(f"{section}.")}
        lines += [f"[{section}]", *(line for name, value in own.items() for line in option_lines(name, value))] if own else []
    return "\n".join(lines)
