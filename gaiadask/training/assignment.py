"""What one training rank is given to do."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field, ValidationError

from gaiadask.config.sections import Config, ModelConfig, TrainingConfig
from gaiadask.errors import ConfigurationError
from gaiadask.inputs.transform import Transform
from gaiadask.records import Record

Report = Callable[[dict[str, Any]], None]


class Assignment(Record):
    """What one rank is told; JSON-able.

    partitions: files relative to the store. transform: as `Transform.to_json` gives it. key: of the model; a checkpoint
    of the same key is gone on from. attempt: names this try in metrics.jsonl. metadata: put into the card.
    """

    store: str
    run: str
    partitions: tuple[str, ...]
    transform: dict[str, Any]
    model: ModelConfig
    training: TrainingConfig
    key: str
    attempt: str = ""
    rank: int = 0
    world_size: int = 1
    ranks_on_host: int = 1
    device: str = "auto"
    metadata: dict[str, Any] = Field(default_factory=dict)


def specification(
    config: Config, partitions: Sequence[str], transform: Transform, key: str, metadata: dict[str, Any]
) -> dict[str, Any]:
    """The assignment of a run's only rank, JSON-able, from its configuration.

    partitions: files relative to the store. key: of the model. metadata: put into the card.
    """
    return Assignment(
        store=config.store,
        run=config.name,
        partitions=tuple(partitions),
        transform=transform.to_json(),
        model=config.model,
        training=config.training,
        key=key,
        attempt=uuid.uuid4().hex[:8],
        metadata=metadata,
    ).model_dump(mode="json")


def read_assignment(line: str) -> Assignment:
    """Raises ConfigurationError where the line is not an assignment."""
    try:
        return Assignment.model_validate_json(line)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'line'}: {p['msg']}" for p in error.errors())
        raise ConfigurationError(f"the first line on stdin is not a rank's assignment as JSON: {problems}") from error
