"""Architecture search by successive halving: its candidates, and the record of what was tried (tune.json).

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) trains every candidate a little, passes the best 1/factor on,
trains those factor times as long, and so on until one is left.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, JsonValue

from gaiadask.config.sections import Config
from gaiadask.config.toml import only_given, option_lines, parse_config
from gaiadask.errors import ConfigurationError, MissingStageError
from gaiadask.keys import digest
from gaiadask.records import JsonObject, Record
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

RUNG_OPTIONS = ("rows_seen", "patience", "validate_every_rows")
"""Options of [training] that the rungs set: in no candidate's key."""
SCORE = "mean over columns beside position of median |error| / IQR, validation stars"


# Candidates -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Candidate:
    """A combination of the values that are searched.

    Attributes:
        options: what is tried, as "model.hidden": its value.
        config: the whole configuration with it.
        key: of its training, whatever the budget.
    """

    options: Mapping[str, JsonValue]
    config: Config
    key: str

    @property
    def name(self) -> str:
        return self.key[:8]


def candidates(config: Config, statistics_key: str) -> list[Candidate]:
    """Every combination of the values in [tune], or as many of them as it asks for, drawn without replacement.

    Raises:
        ConfigurationError: where there is nothing to choose from, or a combination is no configuration.
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
    numbers: Sequence[int] = range(size)
    if 0 < tune.candidates < size:
        numbers = np.sort(np.random.default_rng(tune.seed).choice(size, tune.candidates, replace=False)).tolist()
    drawn = [_candidate(config, statistics_key, _combination(tried, number)) for number in numbers]
    return list({candidate.key: candidate for candidate in drawn}.values())


def _combination(tried: Sequence[tuple[str, Sequence[JsonValue]]], number: int) -> dict[str, JsonValue]:
    """The combination of that number: the last option changes fastest."""
    pairs = []
    for option, values in reversed(tried):
        number, index = divmod(number, len(values))
        pairs.append((option, values[index]))
    return dict(pairs[::-1])


def _candidate(config: Config, statistics_key: str, options: Mapping[str, JsonValue]) -> Candidate:
    values = only_given(config)  # so that an option whose default depends on another one follows it
    for option, value in options.items():
        section, name = option.split(".")
        values[section][name] = value
    parsed = parse_config(values, where=f"[tune], the combination {options_text(options)}")
    key = {"statistics": statistics_key, "model": parsed.model.for_key(), "training": parsed.training.for_key(*RUNG_OPTIONS)}
    key |= {"latent": parsed.latent.for_key()}
    return Candidate(options, parsed, digest(key))


def options_text(options: Mapping[str, JsonValue]) -> str:
    """A candidate's options in one line."""
    return ", ".join(f"{option} = {json.dumps(value)}" for option, value in options.items())


def options_toml(options: Mapping[str, JsonValue]) -> str:
    """A candidate's options as the lines of a configuration."""
    lines = []
    for section in ("model", "training"):
        own = {name.split(".")[1]: value for name, value in options.items() if name.startswith(f"{section}.")}
        lines += [f"[{section}]", *(line for name, value in own.items() for line in option_lines(name, value))] if own else []
    return "\n".join(lines)


# The record -----------------------------------------------------------------------------------------------------------
class RungRecord(Record):
    """One candidate in one rung."""

    budget: int = Field(description="stars shown by the rung's end")
    score: float = Field(description="mean over columns beside position of median |error| / IQR")
    worst: float = Field(description="that of the worst column")
    worst_column: str = Field(description="its name")
    rows_seen: int = Field(description="stars shown")
    seconds: float = Field(description="of training, over all rungs")
    parameters: int = Field(description="of the network")
    validation_loss: float = Field(description="nats a star; of different losses it does not compare")


class CandidateRecord(Record):
    """What came of one candidate."""

    options: JsonObject = Field(description='what was tried, as "model.hidden": its value')
    rungs: tuple[RungRecord, ...] = Field((), description="the rungs that it was in")
    error: str | None = Field(None, description="why it has no further score")


class SearchRecord(Record):
    """tune.json: what was tried, and what came of it."""

    key: str = Field(description="hash of what the search depends on")
    score: str = Field(SCORE, description="what candidates are compared by")
    factor: int = Field(description="the best 1/factor of a rung go on to the next")
    best: str | None = Field(None, description="name of the best candidate; null while the search goes on")
    candidates: dict[str, CandidateRecord] = Field(description="by name")

    @property
    def best_options(self) -> JsonObject:
        """Options of the best candidate."""
        assert self.best is not None
        return self.candidates[self.best].options

    def with_candidate(self, name: str, record: CandidateRecord) -> SearchRecord:
        """The record with another record of one candidate."""
        return self.model_copy(update={"candidates": {**self.candidates, name: record}})


def read_search(store: Store, run: RunPaths) -> SearchRecord:
    """tune.json.

    Raises:
        MissingStageError: where nothing was searched.
    """
    record = store.read_record_if_there(run.tuned, SearchRecord)
    if record is None:
        raise MissingStageError(f"run {run.name!r} has no tune.json yet: make it with `gaiadask tune CONFIG`")
    return record


def search_table(record: SearchRecord) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of what was tried, the best first: options, parameters, score by rung, seconds."""
    tried = list(record.candidates.values())
    options = list(tried[0].options)
    budgets = sorted({rung.budget for candidate in tried for rung in candidate.rungs})
    names = [option.split(".")[1] for option in options]  # no option of [model] is called as one of [training]
    head = [*names, "parameters", *(f"error at {budget / 1e6:g} M stars" for budget in budgets), "seconds", "worst column"]
    return head, [_row(candidate, options, budgets) for candidate in sorted(tried, key=_order)]


def search_markdown(record: SearchRecord) -> str:
    """`search_table` as Markdown."""
    head, rows = search_table(record)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _order(candidate: CandidateRecord) -> tuple[bool, int, float]:
    rungs = candidate.rungs
    return (bool(candidate.error), -len(rungs), rungs[-1].score if rungs else math.inf)


def _row(candidate: CandidateRecord, options: Sequence[str], budgets: Sequence[int]) -> list[str]:
    rungs = {rung.budget: rung for rung in candidate.rungs}
    last = candidate.rungs[-1] if rungs else None
    scores = [
        f"{rungs[b].score:.4f}" if b in rungs else ("failed" if candidate.error and b == budgets[0] else "–") for b in budgets
    ]
    end = [f"{last.seconds:.0f}", f"{last.worst_column} {last.worst:.3f}"] if last else ["–", str(candidate.error)]
    values = [json.dumps(candidate.options[option]) for option in options]
    return [*values, f"{last.parameters:,}" if last else "–", *scores, *end]
