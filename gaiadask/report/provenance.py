"""The section on provenance: origin of the stars, keys and versions."""

from __future__ import annotations

from gaiadask.config.toml import dump_toml
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill
from gaiadask.split import RULE
from gaiadask.store.manifest import ManifestRecord

MOCK_WARNING = "Everything on this page comes from gaiadask’s mock sky. None of it is a measurement of a real star."


def provenance(inputs: ReportInputs) -> str:
    """Origin of the stars, keys and versions of all that was made from them, configuration, credit."""
    config, manifest, card = inputs.config, inputs.manifest, inputs.card
    ingest = manifest.stages.get("ingest")
    return fill(
        "provenance",
        catalogue_id=(ingest and ingest.result.get("catalogue_id")) or card.metadata.get("catalogue_id"),
        archive=config.archive,
        selection=config.selection,
        rows=inputs.rows,
        split_rule=RULE,
        stars=inputs.stars,
        stars_asked=config.quality.rows,
        model_key=card.key,
        versions=card.versions | manifest.versions,
        finished=finished(manifest),
        stages=manifest.stages,
        toml=dump_toml(config, comments=False),
        skipped=inputs.quality.skipped,
        is_mock=inputs.is_mock,
        mock_warning=MOCK_WARNING,
    )


def finished(manifest: ManifestRecord) -> str | None:
    """When the last stage before the report was finished, ISO 8601."""
    return max((stage.finished for stage in manifest.stages.values() if stage.finished), default=None)
