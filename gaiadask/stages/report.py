"""Stage report: the page with the pictures."""

from __future__ import annotations

from pydantic import Field

from gaiadask import publishing
from gaiadask.model.card import ModelCard
from gaiadask.quality.files import read_latent_traversal, read_quality, read_rated
from gaiadask.records import JsonObject
from gaiadask.report import ReportInputs, render
from gaiadask.stages.context import Context
from gaiadask.stages.encode import EncodeResult
from gaiadask.stages.stage import StageResult, StageWork
from gaiadask.store import paths
from gaiadask.training.metrics import read_metrics


class ReportResult(StageResult):
    """Result of the stage report."""

    uri: str = Field(description="of report.html")


def _inputs(context: Context) -> JsonObject:
    return {"evaluate": context.key("evaluate")}


def _make(context: Context, key: str) -> ReportResult:
    store, run, config = context.store, context.run, context.config
    inputs = ReportInputs(
        config=config,
        card=store.read_record(run.card, ModelCard),
        manifest=context.manifest.read(),
        quality=read_quality(store, run, context.key("evaluate")),
        metrics=read_metrics(store, run),
        rated=read_rated(store, run, config.release),
        sky_counts=publishing.read_skymap(store, paths.CATALOGUE),
        rows={
            "written": context.catalogue.rows,
            "encoded": context.manifest.result("encode", EncodeResult).rows,
        },
        latent_traversal=read_latent_traversal(store, run),
    )
    store.write_bytes(run.report, render(inputs).encode())
    return ReportResult(uri=store.uri_of(run.report))


WORK = StageWork(
    _inputs,
    _make,
    ReportResult,
    present=lambda context: context.store.exists(context.run.report),
    files=lambda context: (context.run.report,),
)
