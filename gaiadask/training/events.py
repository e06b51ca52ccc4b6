"""What a training rank reports while it runs: one JSON object a line; the field `event` says of which kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from gaiadask.model.card import MetricsRecord
from gaiadask.records import Record


class Alive(Record):
    """Every few seconds: the rank is not frozen."""

    event: Literal["alive"] = "alive"


class Listening(Record):
    """Rank 0 waits for the others; its supervisor says so, before its process has started."""

    event: Literal["listening"] = "listening"
    address: str = Field(description="host:port where it does")


class Progress(Record):
    """About once a second."""

    event: Literal["progress"] = "progress"
    rows_seen: int = Field(description="stars shown so far")
    rows_per_s: float = Field(description="stars shown a second, since the event before")
    loss: float | None = Field(description="mean loss since the event before, nats a star")


class Validated(MetricsRecord):
    """After each validation: its record."""

    event: Literal["validated"] = "validated"


class Saved(Record):
    """Rank 0 has written a checkpoint between two validations."""

    event: Literal["saved"] = "saved"
    rows_seen: int = Field(description="stars shown before it")


class TrainingEnd(Record):
    """What a training that has ended reports."""

    rows_seen: int = Field(description="stars shown")
    best_rows_seen: int = Field(description="stars shown when the weights that were chosen had been reached")
    stopped_early: bool = Field(description="whether patience ended training before the budget did")
    seconds: float = Field(description="of training, over all tries")
    rows_per_s: float | None = Field(description="stars shown a second")
    parameters: int = Field(description="of the network")
    validation_loss: float = Field(description="of the weights that were chosen, nats a star")


class Done(TrainingEnd):
    """The model is in the store."""

    event: Literal["done"] = "done"


class Failed(Record):
    """The rank ends without a model."""

    event: Literal["error"] = "error"
    type: str = Field(description="name of the exception's class")
    message: str = Field(description="what happened, and the remedy")


RankEvent = Annotated[Alive | Listening | Progress | Validated | Saved | Done | Failed, Field(discriminator="event")]

Report = Callable[[RankEvent], None]
"""Receives a rank's events."""

_PARSER: TypeAdapter[RankEvent] = TypeAdapter(RankEvent)


def parse_event(line: str) -> RankEvent:
    """Parse one line of a rank's stdout. Raises ValidationError where the line is not an event."""
    return _PARSER.validate_json(line)
