"""The stage report: one HTML page that shows how good a run is."""

from __future__ import annotations

from gaiadask import catalogue
from gaiadask.model.card import MetricsRecord, ModelCard
from gaiadask.quality.files import read_latent_traversal, read_quality, read_rated
from gaiadask.report import ReportInputs, render
from gaiadask.report.inputs import ManifestRecord
from gaiadask.stages.context import Context, Inputs, Result
from gaiadask.store import paths
from gaiadask.training.metrics import read_metrics


def _report_inputs(context: Context) -> Inputs:
    return {"evaluate": context.key("evaluate")}


def _make_report(context: Context, key: str) -> Result:
    store, run, config = context.store, context.run, context.config
    manifest = ManifestRecord.model_validate(context.manifest.to_json())
    encoded = manifest.stages["encode"].result["rows"]
    assert isinstance(encoded, int)
    inputs = ReportInputs(
        config=config,
        card=ModelCard.model_validate(store.read_json(run.card)),
        manifest=manifest,
        quality=read_quality(store, run),
        metrics=[MetricsRecord.model_validate(record) for record in read_metrics(store, run)],
        rated=read_rated(store, run, config.release),
        sky_counts=catalogue.read_skymap(store, paths.CATALOGUE),
        rows={"written": context.catalogue.rows, "encoded": encoded},
        latent_traversal=read_latent_traversal(store, run),
    )
    store.write_bytes(run.report, render(inputs).encode())
    return {"uri": store.uri_of(run.report)}
