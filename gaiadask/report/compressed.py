"""The section on the compressed catalogue."""

from __future__ import annotations

from gaiadask.codec.bounds import Tolerance
from gaiadask.codec.compressed import CompressedColumn
from gaiadask.codec.dependencies import MASK
from gaiadask.report import diagrams, ink
from gaiadask.report.inputs import ReportInputs
from gaiadask.report.markup import fill


def compressed(inputs: ReportInputs) -> str:
    """Bits of every column, how near its values come back, and bytes a star at other bounds."""
    record = inputs.compressed
    if record is None:
        return fill("compressed", record=None)
    picture = None
    if record.sizes:
        sizes = {size.bound_sigma: size.bytes_a_star for size in record.sizes}
        picture = ink.svg(
            diagrams.size_curve(sizes, record.bound_sigma, record.bytes / record.rows), "Bytes a star against the bound"
        )
    shown = {name: column for name, column in record.columns.items() if not name.startswith(MASK)}
    masks = [column for name, column in record.columns.items() if name.startswith(MASK)]
    return fill(
        "compressed",
        record=record,
        picture=picture,
        columns={name: (column, _bound(column.tolerance, inputs, name)) for name, column in _in_order(shown, inputs).items()},
        mask_bits=sum(8 * mask.bytes for mask in masks) / record.rows,
        files_bytes=record.bytes / record.rows,
        raw_bytes=sum(column.raw_bits for column in shown.values()) / 8,
        units={name: inputs.release.columns[name].unit for name in shown},
    )


def _in_order(columns: dict[str, CompressedColumn], inputs: ReportInputs) -> dict[str, CompressedColumn]:
    """In the archive's order."""
    return {name: columns[name] for name in inputs.release.columns if name in columns}


def _bound(tolerance: Tolerance, inputs: ReportInputs, name: str) -> str:
    """How far values may be off, in words."""
    amount = f"{tolerance.amount:.3g}"
    if tolerance.kind == "sigma":
        return f"{tolerance.amount / inputs.release.columns[name].error_factor:.3g} σ"
    words = {
        "relative": f"{100 * tolerance.amount:.3g} %",
        "absolute": f"{amount} {ink.pretty_unit(inputs.release.columns[name].unit)}",
        "formula": "as its inputs",
    }
    return words.get(tolerance.kind, "exact")
