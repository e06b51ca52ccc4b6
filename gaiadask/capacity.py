"""How long stages take and what they cost, from measured rates (rates.toml) and the assumptions that stand beside them."""

from __future__ import annotations

import math
import tomllib
from importlib.resources import files
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

DR2_STARS = 1_692_919_135
WIDTH = 25
"""Columns of a star for which `StageRates.store` is said."""


class Strict(BaseModel):
    """A table of the file, which refuses unknown entries."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Rate(Strict):
    """Stars a second of one worker or GPU, and where they were measured; no rate: not yet."""

    rate: float | None = Field(None, gt=0)
    columns: int = 25
    machine: str = ""
    date: str = ""
    command: str = ""


class StageRates(Strict):
    """What a stage does with a star, and how fast.

    takes: what most of a worker's time goes into. shown: stars that pass through. download, store: bytes a star that are fetched from
    the archive, of whatever columns, and that are read from and written to the store, of 25 columns. by_columns: whether a star of
    more columns takes longer; a bulk file has all of them. worker, gpu: rates of stars of different numbers of columns.
    """

    name: str
    takes: str
    shown: int = DR2_STARS
    download: float = 0
    store: float = 0
    by_columns: bool = True
    worker: tuple[Rate, ...] = ()
    gpu: tuple[Rate, ...] = ()

    def rate(self, columns: int, unit: str) -> Rate | None:
        """The measured rate of stars of a number of columns next to this one; unit: "worker" or "gpu"."""
        measured = [rate for rate in getattr(self, unit) if rate.rate]
        return min(measured, key=lambda rate: abs(math.log(rate.columns / columns)), default=None)


class Prices(Strict):
    """USD an hour."""

    worker_hour: float
    gpu_hour: float


class Limits(Strict):
    """Bytes a second of all workers together."""

    store: float
    download: float


class Rates(Strict):
    """The file."""

    prices: Prices
    limits: Limits
    stages: tuple[StageRates, ...]


class Estimate(NamedTuple):
    """Hours of one stage, and what takes that long."""

    hours: float
    bottleneck: str


def read_rates() -> Rates:
    """The file of measured rates."""
    return Rates.model_validate(tomllib.loads(files("gaiadask").joinpath("rates.toml").read_text(encoding="utf-8")))


def estimate(rates: Rates, stage: StageRates, columns: int, unit: str, count: int, shown: float | None = None) -> Estimate | None:
    """How long a stage takes.

    Of the rates that were measured, that of the number of columns nearest to this one counts: a star of more takes as many times
    longer, where it does. Workers share the work evenly, and all of them the store and the archive's line.

    Args:
        rates: measured ones.
        stage: of them.
        columns: of a star.
        unit: "worker" or "gpu".
        count: how many of them.
        shown: stars that pass through; None: those of all of DR2.

    Returns:
        None where the rate was not measured.
    """
    measured = stage.rate(columns, unit)
    if measured is None or measured.rate is None:
        return None
    longer = columns / measured.columns if stage.by_columns else 1.0
    shown = stage.shown if shown is None else shown
    seconds = {
        stage.takes: shown / (measured.rate * count) * longer,
        "the store": shown * stage.store * columns / WIDTH / rates.limits.store,
        "the line to the archive": shown * stage.download / rates.limits.download,
    }
    bottleneck = max(seconds, key=lambda name: seconds[name])
    hours = seconds[bottleneck] / 3600
    return Estimate(hours, bottleneck)
