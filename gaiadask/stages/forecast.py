"""What a selection will take, before anything is fetched: stars, chunks, bytes, disk, and times from measured rates."""

from __future__ import annotations

from pydantic import Field

from gaiadask.archive.base import open_archive
from gaiadask.capacity import estimate, read_rates
from gaiadask.config.sections import Config
from gaiadask.ingest_plan import make_plan
from gaiadask.margin import expected_share
from gaiadask.records import Record
from gaiadask.stages.table import STAGES

PACKED = 0.8
"""Bytes of a catalogue on disk, of its rows' uncompressed ones: 165 of 208 with 10.4 M mock stars of 25 columns."""


class StageTime(Record):
    """How long a stage takes."""

    stage: str = Field(description="name of the stage")
    seconds: float | None = Field(description="null where its rate was not measured")
    bottleneck: str = Field(description="what takes that long")


class Forecast(Record):
    """What a selection will take."""

    source: str = Field(description="where the stars come from")
    stars: int = Field(
        description="about how many, by the archive's own histogram; of mock stars before the selection's conditions"
    )
    columns: int = Field(description="columns of the catalogue")
    chunks: int = Field(description="pieces in which they are fetched")
    partitions: int = Field(description="about how many files the catalogue will have")
    fetched_bytes: int = Field(description="about how many come over the line, or are read from files; 0 for mock stars")
    catalogue_bytes: int = Field(description="of the catalogue on disk, about")
    margin_bytes: int = Field(description="of its margin (catalogue.margin_arcsec) on disk, about; 0 where there is none")
    peak_bytes: int = Field(description="of the store while parts are merged into the catalogue, about")
    workers: int = Field(description="for which the times are")
    stages: tuple[StageTime, ...] = Field(description="in order")


def forecast(config: Config, workers: int) -> Forecast:
    """Ask the archive how many stars a selection has, and compute what they will take. Nothing is fetched, no store is touched.

    Args:
        config: of the run.
        workers: on how many, one core each.

    Raises:
        ArchiveError: the archive cannot be reached, or refuses the query.
        DataError: the selection is empty.
        ConfigurationError: the margin is too wide for the partitions.
    """
    archive, release = open_archive(config.archive, config.selection), config.release
    plan = make_plan(config, archive)
    row_bytes = release.row_bytes(archive.schema.names)
    files = sum(file.size for chunk in plan.chunks for file in chunk.files)
    fetched = {"mock": 0, "files": files}.get(config.archive.kind, plan.rows * row_bytes)
    is_remote = any("://" in file.uri for chunk in plan.chunks for file in chunk.files)
    rates, columns = read_rates(), len(archive.schema.names)
    stages = []
    of_a_run = {stage.name for stage in STAGES if not stage.on_request}
    for stage in rates.stages:
        if stage.name in of_a_run:
            shown = config.training.rows_seen if stage.name == "train" else plan.rows
            own = stage if is_remote else stage.model_copy(update={"download": 0.0})
            # Ingest was measured of bulk files: other archives take the time that they take.
            is_measured = stage.name != "ingest" or config.archive.kind == "files"
            found = estimate(rates, own, columns, "worker", workers, shown) if is_measured else None
            seconds = round(found.hours * 3600, 1) if found else None
            stages.append(StageTime(stage=stage.name, seconds=seconds, bottleneck=found.bottleneck if found else ""))
    named = {stage.stage for stage in stages}
    stages += [StageTime(stage=stage.name, seconds=None, bottleneck="") for stage in STAGES if stage.name in of_a_run - named]
    packed = int(plan.rows * row_bytes * PACKED)
    arcsec = config.catalogue.margin_arcsec
    return Forecast(
        source=archive.source,
        stars=plan.rows,
        columns=columns,
        chunks=len(plan.chunks),
        partitions=len(plan.tiles),
        fetched_bytes=fetched,
        catalogue_bytes=packed,
        margin_bytes=int(packed * expected_share(arcsec, plan.tiles)) if arcsec else 0,
        peak_bytes=2 * packed,
        workers=workers,
        stages=tuple(stages),
    )
