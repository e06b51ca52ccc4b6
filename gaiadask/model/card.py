"""card.json of a model, as typed records: what the network was made from, what it does, and how well."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from gaiadask.config.model import ModelConfig
from gaiadask.config.sections import TrainingConfig
from gaiadask.inputs.masses import ValueKind
from gaiadask.model.rounding import LatentCode
from gaiadask.records import JsonObject, Record

ColumnRole = Literal["free", "derived", "constant", "position"]


class CardColumn(Record):
    """One of the model's columns; its place in the list is its bit in the null mask."""

    name: str = Field(description="name in the archive")
    unit: str = Field(description="VOUnit string, empty where it has none")
    ucd: str = Field(description="unified content descriptor")
    dtype: str = Field(description="Arrow type")
    role: ColumnRole = Field(
        description="free (a value of the network), derived (computed from others), constant (no value in the network), position"
    )
    kind: ValueKind | None = Field(
        None,
        description="of a free column, what its values are: continuous; integer (too many to tell apart); count, levels, flag (few values, which "
        "come back exactly); point mass (continuous, but for values that many stars share); null of other columns, and before 0.3",
    )


class LatentSummary(Record):
    """One latent over validation stars."""

    kl: float = Field(description="mean KL divergence from N(0, 1), nats a star; of a latent that is rounded, its bits")
    mean: float = Field(description="mean of the posterior's mean")
    std: float = Field(description="standard deviation of the posterior's mean")


class MetricsRecord(Record):
    """One validation: a line of metrics.jsonl. Training values are means since the validation before, None before the first batch."""

    rows_seen: int = Field(description="stars shown so far")
    seconds: float = Field(description="of training so far")
    learning_rate: float = Field(description="at this moment")
    kl_weight: float = Field(description="at this moment")
    train_loss: float | None = Field(description="loss of the train stars shown since the validation before, nats a star")
    train_reconstruction: float | None = Field(description="its reconstruction term")
    train_kl: float | None = Field(description="its KL term, not weighted")
    validation_loss: float = Field(description="loss of the validation stars with the final KL weight, nats a star")
    validation_reconstruction: float = Field(description="its reconstruction term")
    validation_kl: float = Field(description="its KL term, not weighted")
    median_error: dict[str, float] = Field(description="median |error| of each network value, in the transform's unit")
    active_units: int = Field(description="latents whose posterior mean varies over stars")
    latents: tuple[LatentSummary, ...] = Field((), description="each latent, in order; not repeated in the card's metrics")
    attempt: str = Field("", description="names the try that wrote it")
    resumed_from_rows: int = Field(0, description="stars shown when this try began")


class TrainingSummary(Record):
    """What training did."""

    config: TrainingConfig = Field(description="the section [training]")
    rows_seen: int = Field(description="stars shown")
    best_rows_seen: int = Field(description="stars shown when the weights that were chosen had been reached")
    stopped_early: bool = Field(description="whether patience ended it before the budget did")
    seconds: float = Field(description="of training, over all tries")
    rows_per_s: float | None = Field(description="stars shown a second")
    parameters: int = Field(description="of the network")
    validation_rows: int = Field(description="validation stars used at each validation")
    device: str = Field(description="where the network was trained, as torch names it")


ONE_SIGMA, TWO_SIGMA = 0.6827, 0.9545
"""Shares of a normal distribution within one and two standard deviations: what a deviation of the model's values is measured by."""
IMPUTED_DRAWS = 32
"""Values that are drawn for each null value: their middle is then known to a fifth of their width."""


class HiddenValue(Record):
    """What the values of stars were, beside the model's guess of them while they were hidden.

    The guess is the value that the decoder gives as if nothing were null.
    """

    guesses: tuple[float, ...] = Field(description="guesses, ascending, for which `errors` has a row each; linear between them")
    lowest: float = Field(description="the smallest guess that was rated; smaller ones count as this one")
    highest: float = Field(description="the largest")
    slope: float = Field(description="how much of a guess's distance from the others is the value's too, 0 to 1")
    errors: tuple[tuple[float, ...], ...] = Field(
        description=f"of each guess: quantiles of value - slope * guess, at ranks (i + 1/2) / {IMPUTED_DRAWS}, in the network's unit"
    )
    draws: tuple[int, ...] = Field(
        description="the rank, from 0, that each draw of a star's null values takes: values of one null group are drawn together as stars have "
        "them together"
    )


class ValueErrors(Record):
    """How well network values are known, by their names (`Transform.value_names`), in the network's unit."""

    rebuilt: dict[str, float] = Field(
        {},
        description="error of each rebuilt value: 68 % of stars are at most this far from their own value, and 95 % twice as far",
    )
    hidden: dict[str, HiddenValue] = Field(
        {},
        description="of each value that can be null: what it was for validation stars from which it was hidden; none where these are too few",
    )

    @field_validator("hidden", mode="before")
    @classmethod
    def _as_now(cls, value: object) -> object:
        """Without what older cards have, which tell no distribution: an offset, a slope and one error for all stars."""
        return {name: one for name, one in value.items() if "offset" not in one} if isinstance(value, dict) else value


class TrainingOutcome(Record):
    """What training leaves beside the weights: the parts of the card that do not follow from the transform."""

    key: str = Field(description="hash of what the model was made from")
    model: ModelConfig = Field(description="the section [model]")
    training: TrainingSummary = Field(description="what training did")
    metrics: MetricsRecord = Field(description="the validation whose weights were chosen, with its latents")
    errors: ValueErrors = Field(ValueErrors(), description="how well network values are known")
    precisions: tuple[float, ...] = Field((), description="of the latents, where they are rounded: see LatentCode")
    errors_by_bits: tuple[tuple[float, ...], ...] = Field((), description="of the latents, where they are rounded: see LatentCode")
    metadata: dict[str, str | int] = Field({}, description="put into the card as it is")


class ModelCard(Record):
    """card.json: everything about a model but its weights."""

    format_version: int = Field(description="of this file")
    key: str = Field(description="hash of what the model was made from")
    columns: tuple[CardColumn, ...] = Field(description="the model's columns, in the order of the null mask's bits")
    transform: JsonObject = Field(description="the fitted transform, as `Transform.from_json` reads it")
    model: ModelConfig = Field(description="the section [model]")
    training: TrainingSummary = Field(description="what training did")
    metrics: MetricsRecord = Field(description="the validation whose weights were chosen")
    latents: tuple[LatentSummary, ...] = Field(description="each latent over validation stars")
    codes: tuple[LatentCode, ...] = Field((), description="how each latent is stored; empty where all are float32, as before 0.3")
    errors: ValueErrors = Field(ValueErrors(), description="how well network values are known")
    metadata: dict[str, str | int] = Field(description="catalogue_id, catalogue_rows and split of the stars it was trained on")
    versions: dict[str, str] = Field(description="of Python and the packages that made it")
    weights_sha256: str = Field("", description="of weights.safetensors, the file that this card describes")

    def to_json(self) -> JsonObject:
        """As card.json has it: the latents once, beside the metrics."""
        return self.model_dump(mode="json", exclude={"metrics": {"latents"}})


def latent_names(latents: int) -> list[str]:
    """Names of the latent columns.

    >>> latent_names(3)
    ['z00', 'z01', 'z02']
    """
    return [f"z{i:02d}" for i in range(latents)]
