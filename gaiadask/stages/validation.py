"""Validates a store's catalogue and what a run has made of it: latents, new and rebuilt stars, the compressed catalogue."""

from __future__ import annotations

from typing import NamedTuple

from gaiadask import ingest
from gaiadask.cluster.workers import Workers
from gaiadask.config.sections import Config
from gaiadask.ingest import CatalogueRecord
from gaiadask.progress import Progress, Silent
from gaiadask.stages.context import Context
from gaiadask.stages.engine import PIPELINE
from gaiadask.validate import Finding, validate


class Validated(NamedTuple):
    """What was looked at, and what is wrong with it.

    Attributes:
        catalogue: record of the store's catalogue.
        products: entries of the run's manifest whose files were looked at.
        findings: everything that is wrong; empty where all is complete and correct.
    """

    catalogue: CatalogueRecord
    products: tuple[str, ...]
    findings: list[Finding]


def validate_run(config: Config, quick: bool, progress: Progress | None = None, workers: Workers | None = None) -> Validated:
    """Validate the store's catalogue, and the files of every stage that the run has finished.

    Args:
        config: of the run; the run may have made nothing yet.
        quick: look at the catalogue without its checksums, and at the footers of the run's files.
        progress: receives how far it is.
        workers: where files are looked at, instead of on the configuration's cluster.

    Raises:
        MissingStageError: there is no catalogue.
    """
    context = Context(config, progress or Silent(), given_workers=workers)
    with context.resources:
        record = ingest.recorded_catalogue(context.store)
        findings = validate(context.workers, context.store, config.release, context.progress, quick=quick)
        products = []
        for entry in context.manifest.read().stages:
            name, _, place = entry.partition(" ")
            problems = PIPELINE.named(name).work.problems
            if problems is not None:
                products.append(entry)
                findings += problems(context, place, quick)
        return Validated(record, tuple(products), findings)
