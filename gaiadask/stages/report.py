"""Stage report: the page with the pictures."""

from __future__ import annotations

from pydantic import Field

from gaiadask import publishing
from gaiadask.codec.compressed import Compressed, CompressedRecord
from gaiadask.model.card import ModelCard
from gaiadask.quality.files import read_latent_traversal, read_quality, read_rated
from gaiadask.records import JsonObject, StageResult
from gaiadask.report import ReportInputs, render
from gaiadask.stages.context import Context
from gaiadask.stages.encode import EncodeResult
from gaiadask.stages.stage import StageWork
from gaiadask.store import paths
from gaiadask.training.metrics import read_metrics


class ReportResult(StageResult):
    """Result of the stage report."""

    uri: str = Field(description="of report.html")
    compressed: str = Field("", description="key of the compressed catalogue that it shows; none: it had none")

    def summary(self) -> str:
        return self.uri


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
        compressed=_compressed(context),
    )
    store.write_bytes(run.report, render(inputs).encode())
    shown = inputs.compressed.key if inputs.compressed else ""
    return ReportResult(uri=store.uri_of(run.report), compressed=shown)


def _compressed(context: Context) -> CompressedRecord | None:
    product = Compressed(context.store, context.run.compressed)
    return product.record if context.store.exists(product.marker) else None


def _is_present(context: Context) -> bool:
    """Whether the page is there, and shows the compressed catalogue that the run has."""
    compressed = _compressed(context)
    shown = context.manifest.result("report", ReportResult).compressed
    return context.store.exists(context.run.report) and shown == (compressed.key if compressed else "")


WORK = StageWork(
    _inputs,
    _make,
    ReportResult,
    present=_is_present,
    files=lambda context: (context.run.report,),
)
