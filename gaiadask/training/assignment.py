"""What one training rank is given."""

from __future__ import annotations

from pydantic import Field, ValidationError

from gaiadask.config.model import ModelConfig
from gaiadask.config.sections import TrainingConfig
from gaiadask.errors import ConfigurationError
from gaiadask.records import JsonObject, Record, problems
from gaiadask.store.files import Fence


class Assignment(Record):
    """Everything that one rank needs to train a model; travels to its process as one line of JSON."""

    store: str = Field(description="URI of the store")
    fences: tuple[Fence, ...] = Field((), description="leases under which the rank writes")
    run: str = Field(description="name of the run that the model is saved in")
    partitions: tuple[str, ...] = Field(description="partition files of the catalogue, relative to the store")
    partition_rows: tuple[int, ...] | None = Field(None, description="rows of each of them; null: as their footers say")
    validation: str = Field(description="file of the validation stars, relative to the store")
    transform: JsonObject = Field(description="the fitted transform, as `Transform.to_json` wrote it")
    codec: JsonObject = Field(description="how stars are held in memory: a `Codec`, as its `to_json` wrote it")
    model: ModelConfig = Field(description="the section [model]")
    training: TrainingConfig = Field(description="the section [training]")
    bits: int = Field(0, description="of a star, where latents are rounded: [latent] bits")
    key: str = Field(description="of the model; training resumes from a checkpoint of the same key")
    attempt: str = Field("", description="names this try in metrics.jsonl")
    rank: int = Field(0, description="number of this rank among those that train the network")
    world_size: int = Field(1, description="how many ranks train the network together")
    meeting: str = Field("", description="host:port where rank 0 waits for the others")
    listening: int = Field(-1, description="of rank 0: the file descriptor of a socket that listens there")
    ranks_on_host: int = Field(1, description="ranks that share this machine's cores")
    device: str = Field("auto", description="where the network is trained, as [cluster] device says")
    metadata: dict[str, str | int] = Field({}, description="goes into the model's card: which stars it was trained on")


def read_assignment(line: str) -> Assignment:
    """Parse an assignment. Raises ConfigurationError where the line is not an assignment as JSON."""
    try:
        return Assignment.model_validate_json(line)
    except ValidationError as error:
        wrong = "; ".join(problems(error, whole="line"))
        raise ConfigurationError(f"the first line on stdin is not a rank's assignment as JSON: {wrong}") from error
