"""The section on training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gaiadask.model.card import MetricsRecord, latent_names
from gaiadask.report import diagrams, ink
from gaiadask.report.diagrams import Curve
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill


class _Panel(NamedTuple):
    title: str
    train: Callable[[MetricsRecord], float | None]
    validation: Callable[[MetricsRecord], float | None]


_PANELS = (
    _Panel("loss  [nats a star]", lambda r: r.train_loss, lambda r: r.validation_loss),
    _Panel("reconstruction  [nats a star]", lambda r: r.train_reconstruction, lambda r: r.validation_reconstruction),
    _Panel("KL  [nats a star]", lambda r: r.train_kl, lambda r: r.validation_kl),
)


def training(inputs: ReportInputs) -> str:
    """Loss, reconstruction and KL apart against stars shown; what each latent costs."""
    panels = {panel.title: curves for panel in _PANELS if (curves := _curves(inputs.metrics, panel))}
    picture = ink.svg(diagrams.training_curves(panels), f"Training curves: {', '.join(panels)}") if panels else None
    kl = [latent.kl for latent in inputs.card.latents]
    bars = ink.svg(diagrams.kl_bars(latent_names(len(kl)), kl), "KL divergence of each latent") if any(kl) else None
    return fill(
        "training",
        curves=picture,
        rows_seen=inputs.metrics[-1].rows_seen if inputs.metrics else 0,
        training=inputs.card.training,
        active_units=inputs.card.metrics.active_units,
        latents=len(kl),
        kl_bars=bars,
        kl_nats=sum(kl),
        kl_bits=sum(kl) / np.log(2),
    )


def _curves(metrics: Sequence[MetricsRecord], panel: _Panel) -> list[Curve]:
    curves = []
    for label, quantity, is_validation in (("training", panel.train, False), ("validation", panel.validation, True)):
        points = [(record.rows_seen, value) for record in metrics if (value := quantity(record)) is not None]
        # A plain autoencoder has a KL of 0 throughout: not drawn.
        if points and (not panel.title.startswith("KL") or any(value for _, value in points)):
            rows, values = np.array(points, np.float64).T
            curves.append(Curve(label, rows, values, is_validation))
    return curves
