"""The section on bytes a star."""

from __future__ import annotations

from collections.abc import Mapping

from gaiadask.quality.records import Storage
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.report import diagrams, ink
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill


def plain_bytes(inputs: ReportInputs) -> int:
    """Bytes of an uncompressed star with its id, its position and the columns that the latents stand for."""
    return inputs.release.row_bytes({SOURCE_ID, RA, DEC, *inputs.columns})


def storage(inputs: ReportInputs) -> str:
    """Cost of a star as a row of the catalogue and as latents."""
    size = inputs.quality.storage
    if size is None:
        return fill("storage", storage=None)
    picture = ink.svg(diagrams.byte_bars(_bars(inputs, size)), "Bytes a star by part")
    selected = len(inputs.config.selection.column_names)
    return fill("storage", storage=size, picture=picture, selected=selected, columns=len(inputs.columns))


def _bars(inputs: ReportInputs, size: Storage) -> dict[str, Mapping[str, float]]:
    """Parts of a star's bytes, for each way to store it."""
    row = size.row
    parts = {
        "source_id": row.source_id, "HEALPix index": row.healpix_29, "position": row.position, "null mask": row.null_mask,
        "latents": row.latents,
    }  # fmt: skip
    bars: dict[str, Mapping[str, float]] = {
        f"{len(inputs.columns)} columns, plain": {"columns as they are": plain_bytes(inputs)},
        "latents, plain": {part: size for part, size in parts.items() if size} | {"model": size.model},
    }
    if size.catalogue_on_disk:
        bars["catalogue, on disk"] = {"parquet file": size.catalogue_on_disk}
    if size.on_disk:
        bars["latents, on disk"] = {"parquet file": size.on_disk - size.model, "model": size.model}
    return bars
