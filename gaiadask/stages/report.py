"""Stage report: the page with the pictures."""

from __future__ import annotations

from pydantic import Field

from gaiadask import catalogue
from gaiadask.quality.files import read_rated, read_walks
from gaiadask.records import JsonObject
from gaiadask.report import ReportInputs, render
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageResult, StageWork
from gaiadask.store import paths
from gaiadask.training.metrics import read_metrics


class ReportResult(StageResult):
    """Where the page lies."""

    uri: str = Field(description="of report.html")


def _inputs(context: Context) -> JsonObject:
    return {"evaluate": context.key("evaluate")}


def _make(context: Context, key: str) -> ReportResult:
    store, run = context.store, context.run
    manifest = context.manifest.read()
    inputs = ReportInputs(
        config=context.config, card=store.read_json(run.card), manifest=manifest.model_dump(mode="json"), quality=store.read_json(run.quality),
        metrics=[record.to_json() for record in read_metrics(store, run)], rated=read_rated(store, run), sky_counts=catalogue.read_skymap(store, paths.CATALOGUE),
        rows={"written": context.catalogue.rows, "encoded": int(str(manifest.stages["encode"].result["rows"]))},
        walks=read_walks(store, run),
    )  # fmt: skip
    store.write_bytes(run.report, render(inputs).encode())
    return ReportResult(uri=store.uri_of(run.report))


WORK = StageWork(_inputs, _make, ReportResult, lambda context: context.remove(context.run.report))
