"""The stages of a run, in order: what each needs, what its result depends on, what it makes.

The CLI and the flows walk `STAGES` through `run_stages` and hold no logic of their own. A stage's key is a hash of
everything its result depends on: where the manifest holds the same key the stage is skipped; where it holds another one,
nothing is overwritten.
"""

from __future__ import annotations

from gaiadask import catalogue
from gaiadask.quality.files import read_rated, read_walks
from gaiadask.report import ReportInputs, render
from gaiadask.stages.context import Context, Inputs, Result
from gaiadask.store import paths
from gaiadask.training.metrics import read_metrics


def _report_inputs(context: Context) -> Inputs:
    return {"evaluate": context.key("evaluate")}


def _make_report(context: Context, key: str) -> Result:
    store, run = context.store, context.run
    manifest = context.manifest.to_json()
    inputs = ReportInputs(
        config=context.config, card=store.read_json(run.card), manifest=manifest, quality=store.read_json(run.quality),
        metrics=[record.to_json() for record in read_metrics(store, run)], rated=read_rated(store, run), sky_counts=catalogue.read_skymap(store, paths.CATALOGUE),
        rows={"written": context.catalogue.rows, "encoded": manifest["stages"]["encode"]["result"]["rows"]},
        walks=read_walks(store, run),
    )  # fmt: skip
    store.write_bytes(run.report, render(inputs).encode())
    return {"uri": store.uri_of(run.report)}
