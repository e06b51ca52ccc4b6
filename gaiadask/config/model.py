"""The section [model]: which columns the autoencoder encodes, how, and what its loss is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator
from pydantic_core import PydanticKnownError

from gaiadask.config.presets import (
    LATENTS,
    LATENTS_OF_SEED25,
    LIKELIHOODS,
    TAIL_FROM,
    Activation,
    BatchNorm,
    ReconstructionLoss,
    model_defaults,
)
from gaiadask.config.section import ColumnChoice, Section
from gaiadask.inputs.encoding import scalings
from gaiadask.release.release import DEFAULT_RELEASE, release_named

_OF_LAYERS = ("loss", "tail_from", "kl_weight", "free_bits", "linear_path", "activation", "batch_norm")
"""Options of networks of hidden layers from values to latents and back."""


class ModelConfig(Section):
    """The autoencoder. What the preset sets is written as a comment: uncomment to override."""

    preset: Literal["vae", "flow", "autoencoder", "keras-2020", "pytorch-2020"] = Field(
        "vae",
        description="vae: a latent distribution, with a KL term; flow: a vae whose decoder undoes its encoder, value after value, which needs the fewest bits; autoencoder: without a KL term; keras-2020, pytorch-2020: the systems that "
        "gaiadask grew from, for comparison (their scaling, loss, learning rate and widths). Options that are given override the preset",
    )
    columns: ColumnChoice = Field(
        "seed16",
        description="columns to encode: seed16, seed25, a list of columns, or all (every number and flag of the selection)",
    )
    latents: int = Field(
        LATENTS,
        ge=0,
        le=256,
        description=f"numbers that a star is compressed to; default {LATENTS_OF_SEED25} with columns = seed25; 0, with preset flow: one for each value",
    )
    # As good as three layers of 256 and three times as fast, at 4, 6 and 8 latents (validation stars).
    hidden: tuple[PositiveInt, ...] = Field(
        (128, 128, 128), description="widths of the encoder's hidden layers; the decoder mirrors them"
    )
    position: Literal["condition", "input", "degrees"] = Field(
        "condition",
        description="condition: ra and dec are given to the decoder, so that they need no latent; input: they are encoded, as a unit "
        "vector; degrees: they are encoded like any other two columns",
    )
    derive: bool = Field(
        True, description="compute columns that follow from others, instead of encoding them; false: encode them like the rest"
    )
    scaling: str = Field(
        "quantile",
        description="quantile: each column to a normal distribution through its quantiles; min-max: to 0..1; iqr: distance from "
        "the median in interquartile ranges",
        json_schema_extra={"enum": [*scalings()]},
    )
    loss: ReconstructionLoss = Field(
        "hyperbolic",
        description="hyperbolic, gaussian: likelihood of the values that are not null (noise_scale, error_share; tail_from); mse; "
        "weighted-mse (column_weights); bce: binary cross-entropy of values in 0..1, with a sigmoid output",
    )
    column_weights: dict[str, PositiveFloat] = Field(
        {}, description="weighted-mse: weight of each column's squared error; columns not named have 1 / IQR squared"
    )
    # noise_scale and error_share: chosen on the table in model.losses.
    noise_scale: float = Field(
        0.003,
        gt=0,
        description="smallest standard deviation of the decoder, in units of the transformed columns: the precision to which values are encoded",
    )
    error_share: float = Field(
        0.03,
        ge=0,
        description="decoder scale per value = max(noise_scale, error_share × catalogue error): no value is encoded more precisely "
        "than this share of its own error; 0: noise_scale for all values",
    )
    # A tenth to a fifth less mean error than a Gaussian at 4 latents; the value itself was not tuned (docs/from_2020.md, Tails).
    tail_from: float = Field(
        TAIL_FROM,
        gt=0,
        description="hyperbolic: error, in units of the transformed columns, beyond which the likelihood falls exponentially instead of "
        "as a Gaussian, so that a few stars that cannot be rebuilt do not dominate the loss",
    )
    kl_weight: float = Field(
        1.0,
        ge=0,
        description="weight of the KL term after warm-up (vae; with latent.bits, where it is the same for every star, it changes nothing)",
    )
    free_bits: float = Field(
        0.0,
        ge=0,
        description="nats of KL for each latent that cost nothing, so that no latent collapses (vae, latent.bits = 0)",
    )
    linear_path: bool = Field(
        True,
        description="a linear path beside the hidden layers, initialised with the principal components: training begins as PCA",
    )
    activation: Activation = Field("silu", description="activation of the hidden layers")
    batch_norm: BatchNorm = Field(
        "none",
        description="batch normalisation of the hidden layers; running: with running moments outside training; batch: always with the moments "
        "of the batch, as a network on which eval() is never called: latents then depend on the other stars of the batch",
    )

    @field_validator("scaling", mode="before")
    @classmethod
    def _scaling(cls, value: Any) -> Any:
        if value not in (names := list(scalings())):
            *first, last = map(repr, names)
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(first)} or {last}"})
        return value

    @field_validator("columns")
    @classmethod
    def _numbers(cls, value: ColumnChoice) -> ColumnChoice:
        columns = release_named(DEFAULT_RELEASE).columns
        labels = [] if isinstance(value, str) else [name for name in value if columns[name].is_text]
        if labels:
            raise ValueError(f"{labels} cannot be encoded: not a number. Leave them out; the catalogue carries them")
        return value

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**model_defaults(values), **values}

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        of_layers = [
            name for name in _OF_LAYERS if self.preset == "flow" and getattr(self, name) != type(self).model_fields[name].default
        ]
        for wrong, message in (
            (bool(of_layers),
             f"{', '.join(of_layers)}: not an option of preset 'flow'. Leave it out, or use preset 'vae'"),
            (self.preset == "flow" and self.position != "condition",
             f"preset 'flow' cannot encode the position (position = {self.position!r}): use position = 'condition', or preset 'vae'"),
            (self.preset == "flow" and self.latents > 0,
             f"latents = {self.latents} does not go with preset 'flow', which has one for each value: leave it out; with fewer [latent] bits "
             "those that are worth least are not stored"),
            (self.preset != "flow" and self.latents == 0,
             f"latents = 0 goes with preset 'flow' alone, not with {self.preset!r}: say how many"),
            (self.preset == "vae" and self.loss not in LIKELIHOODS,
             f"loss = {self.loss!r} is no likelihood, which the ELBO of preset 'vae' needs: use 'hyperbolic', or preset 'autoencoder'"),
            (self.loss == "bce" and self.scaling != "min-max",
             f"loss = 'bce' takes values in 0..1, scaling = {self.scaling!r} gives others: use scaling = 'min-max'"),
            (self.loss not in LIKELIHOODS and self.error_share > 0,
             f"error_share sets the scale of a likelihood, loss = {self.loss!r} has none: use loss = 'hyperbolic' or error_share = 0"),
            (self.loss != "hyperbolic" and self.tail_from != TAIL_FROM,
             f"tail_from belongs to loss = 'hyperbolic', not to {self.loss!r}"),
            (self.preset != "vae" and self.free_bits > 0,
             f"free_bits belong to the KL term, which preset {self.preset!r} does not have: use preset 'vae' or free_bits = 0"),
            (self.loss != "weighted-mse" and bool(self.column_weights),
             f"column_weights belong to loss = 'weighted-mse', not to {self.loss!r}"),
            (self.linear_path and self.loss == "bce",
             "linear_path starts at the principal components, which a sigmoid output (loss = 'bce') does not: set linear_path = false"),
        ):  # fmt: skip
            if wrong:
                raise ValueError(message)
        return self
