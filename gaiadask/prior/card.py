"""prior/card.json, as typed records: what a prior was fitted from, and how well; and the result of the stage `prior`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gaiadask.config.sections import PriorConfig
from gaiadask.records import JsonObject, Record, StageResult


class FitStep(Record):
    """One validation on the way of a fit."""

    rows_seen: int = Field(description="stars shown so far")
    validation_loss: float = Field(description="minus log-likelihood of validation stars, nats a star, of the gaussianised columns")


class DensityCard(Record):
    """One conditional density, and its fit."""

    features: int = Field(description="columns that it draws")
    context: int = Field(description="number of values that they are conditioned on")
    rows_seen: int = Field(description="stars shown")
    seconds: float = Field(description="of the fit, over all tries")
    validation_loss: float = Field(description="the lowest, whose weights were chosen")
    course: tuple[FitStep, ...] = Field(description="all validations, in order")


class StarsUsed(Record):
    """How many stars a prior was fitted on."""

    counted: int = Field(description="train stars counted on the sky")
    train: int = Field(description="train stars that the densities were fitted to")
    validation: int = Field(description="validation stars that chose their weights")


class PriorCard(Record):
    """prior/card.json: everything about a prior but its arrays."""

    format_version: int = Field(description="of this file")
    key: str = Field(description="hash of what the prior was made from")
    model_key: str = Field(description="of the model whose latents it draws")
    prior: PriorConfig = Field(description="the section [prior]")
    stars: StarsUsed = Field(description="how many stars it was fitted on")
    pixels: int = Field(description="of the density on the sky")
    varying: tuple[int, ...] = Field(description="numbers of the network values that some train stars lack")
    densities: dict[str, DensityCard] = Field(description="by name: latent and residual, or free, or flow")
    limits: dict[str, tuple[float, float]] = Field(
        description="smallest and largest value of each column among train stars: no new star lies outside"
    )
    weights_sha256: str = Field("", description="of weights.safetensors, the file that this card describes")


class DensityResult(Record):
    """What the stage reports of one density."""

    validation_loss: float = Field(description="nats a star, of the gaussianised columns")
    rows_seen: int = Field(description="stars shown")
    seconds: float = Field(description="of the fit, over all tries")


class PriorResult(StageResult):
    """Result of the stage `prior`; of kind "none" nothing but its kind."""

    kind: Literal["latent", "gaussian", "free", "none"] = Field(description="as prior.kind")
    pixels: int | None = Field(None, description="of the density on the sky")
    counted: int | None = Field(None, description="train stars counted on the sky")
    train: int | None = Field(None, description="train stars that the densities were fitted to")
    validation: int | None = Field(None, description="validation stars that chose their weights")
    latent: DensityResult | None = Field(None, description="p(latents | position, null mask)")
    residual: DensityResult | None = Field(None, description="p(residual | latents, position, null mask)")
    flow: DensityResult | None = Field(None, description="p(values | position, null mask) by the model's own flow, trained on")
    free: DensityResult | None = Field(None, description="p(values | position, null mask), without latents")

    def summary(self) -> str:
        if self.kind == "none":
            return 'none: prior.kind is "none"'
        fits = {name: fit for name in ("latent", "residual", "free", "flow") if (fit := getattr(self, name))}
        shown = ", ".join(f"{name} {fit.rows_seen:,} stars shown in {fit.seconds:.0f} s" for name, fit in fits.items())
        return f"{self.train or 0:,} train stars, {self.pixels or 0:,} pixels; {shown}"

    def to_json(self) -> JsonObject:
        """As the manifest has it: without what was not made."""
        return self.model_dump(mode="json", exclude_none=True)
