"""Code length of a few real rows: bits that their numbers would take in a large catalogue of such stars.

A few thousand rows are too few to compress: descriptions and tables would outweigh them. So each contestant's whole numbers are given
the length that a coder would need who knows their distribution from other such rows: a smooth one, or one of few kinds, whichever is
shorter, learned from four fifths of the rows and applied to the rest, five times. Tables of predictions are fitted to other stars than
those that are coded, and not counted; nor are ids, of which some rows say nothing: they count as in the mock catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from baselines_of_compression import Floats, Integers, Packer, PerStar
from numpy.typing import NDArray

from gaiadask.codec import columns
from gaiadask.codec.bounds import Tolerance, tolerances
from gaiadask.codec.card import CodecCard
from gaiadask.codec.chunk import column_of
from gaiadask.codec.coders import CODERS
from gaiadask.codec.columns import Judge, Originals
from gaiadask.codec.fit import fit_codec
from gaiadask.codec.grid import Grid
from gaiadask.codec.nulls import chosen
from gaiadask.codec.prediction import predict
from gaiadask.codec.stars import Stars
from gaiadask.release.column import SOURCE_ID
from gaiadask.release.dr2 import SEED25
from gaiadask.release.release import Release, release_named
from gaiadask.split import hash64
from gaiadask.store.paths import Tile

ID_BITS = {"B2": 38.0, "B3": 38.0, "B4": 38.0}
SPLIT_ID_BITS = 27.0
LARGE = 10**8
"""Stars of the catalogue that the tables are to pay for."""
_DIGITS = 13
_MEASURED = ("parallax", "parallax_error", "pmra", "pmdec", "ra_error", "phot_g_mean_flux", "phot_g_mean_flux_error")
_NEEDED = ("parallax", "ra_error", "phot_g_mean_flux", "phot_g_mean_flux_error")
_FOLDS, _MOST_KINDS, _EXCEPTION_BITS = 5, 64, 12.0
_ABOUT_THE_REST = 0.002
"""Of the probability, for numbers unlike any that were seen."""


class Stream(NamedTuple):
    """Whole numbers of one column, as they would be packed.

    Attributes:
        column: that they are of.
        numbers: one for each star that has one.
        scale: predicted size of each; None: of all the same.
    """

    column: str
    numbers: Integers
    scale: Floats | None = None


# Lengths --------------------------------------------------------------------------------------------------------------
def length(stream: Stream) -> float:
    """Bits of the numbers, each coded with the distribution of the others' folds."""
    numbers = stream.numbers.astype(np.float64)
    scale = np.ones(len(numbers)) if stream.scale is None else stream.scale
    fold = np.arange(len(numbers)) % _FOLDS
    total = 0.0
    for i in range(_FOLDS):
        known, coded = fold != i, fold == i
        if coded.any() and known.any():
            total += min(
                _smooth(numbers[known], scale[known], numbers[coded], scale[coded]), _of_kinds(numbers[known], numbers[coded])
            )
    return total


def _of_kinds(known: Floats, coded: Floats) -> float:
    kinds = np.unique(np.concatenate([known, coded]))
    if len(kinds) > _MOST_KINDS:
        return np.inf
    counts = np.sum(known[:, None] == kinds, axis=0) + 0.5 / len(kinds)
    return float(-np.log2(counts[np.searchsorted(kinds, coded)] / counts.sum()).sum())


def _smooth(known: Floats, known_scale: Floats, coded: Floats, coded_scale: Floats) -> float:
    """Of numbers over their scale: linear between quantiles on a scale that is logarithmic far from 0."""
    spread = np.concatenate([(known + step) / known_scale for step in (-0.375, -0.125, 0.125, 0.375)])
    middle = np.median(spread)
    width = float(np.median(np.abs(spread - middle))) or 1.0

    def place(values: Floats) -> Floats:
        return np.arcsinh((values - middle) / width)

    count = int(np.clip(np.sqrt(len(known)), 4, 64))
    shares = np.linspace(0, 1, count + 1)
    knots = np.quantile(place(spread), shares)
    knots += np.arange(count + 1) * 1e-9
    inside = 1 - 1 / len(known)

    def below(values: Floats) -> Floats:
        at = place(values)
        share = (1 - inside) / 2 + inside * np.interp(at, knots, shares)
        tail = (1 - inside) / 2
        share = np.where(at < knots[0], tail * np.exp(np.minimum(at - knots[0], 0)), share)
        share = np.where(at > knots[-1], 1 - tail * np.exp(np.minimum(knots[-1] - at, 0)), share)
        return (1 - _ABOUT_THE_REST) * share + _ABOUT_THE_REST * (np.arctan(np.sinh(at / 4)) / np.pi + 0.5)

    chance = below((coded + 0.5) / coded_scale) - below((coded - 0.5) / coded_scale)
    return float(-np.log2(np.maximum(chance, 2.0**-60)).sum())


# Contestants ----------------------------------------------------------------------------------------------------------
class Recorder(Packer):
    """Keeps what is packed."""

    def __init__(self) -> None:
        super().__init__()
        self.packed: list[tuple[str, NDArray]] = []

    def pack(self, name: str, numbers: NDArray) -> bytes:
        self.packed.append((name, numbers))
        return super().pack(name, numbers)


def bits_of_grids(
    table: pa.Table, bounds: Mapping[str, Tolerance], release: Release, choices: Mapping[str, bool]
) -> dict[str, float]:
    """Bits of each column on grids without prediction."""
    scheme = PerStar(release, bounds, **choices)
    scheme.packer = recorder = Recorder()
    scheme.compress(table)
    bits: dict[str, float] = {}
    for name, numbers in recorder.packed:
        if name in (SOURCE_ID, "pixels", "running"):
            continue
        if name == "rows" or numbers.dtype.kind == "f":
            own = len(numbers) * (_EXCEPTION_BITS if name == "rows" else 8.0 * numbers.dtype.itemsize)
        else:
            own = length(Stream(name, numbers.astype(np.int64)))
        bits[name] = bits.get(name, 0.0) + own
    return bits


def bits_of_ours(table: pa.Table, card: CodecCard, release: Release) -> dict[str, float]:
    """Bits of each column as the codec has it."""
    natives = {name: columns.native(table[name]) for name in table.column_names}
    judge = Judge(Originals(natives), {code.name: code.tolerance for code in card.columns}, release)
    stars = Stars(card.features, card.anchor, Tile(0, 0), table.num_rows, card.with_residual)
    bits: dict[str, float] = {}
    for code in card.columns:
        column, numbers, scale = column_of(code, natives, stars), None, None
        if code.kind == "grid":
            grid = Grid.of(code, stars, column.null, release)
            numbers = chosen(grid.steps(column.as_floats)[0], column.null)
            levels = None if grid.levels is None else chosen(grid.levels, column.null)
            scale = None if levels is None else np.exp2((levels - np.median(levels)) / 2)
        elif code.kind == "category":
            coder = CODERS["category"](code, stars, column.null, release)
            numbers = chosen(coder.propose(column.values, judge.originals).numbers, column.null)
            if code.prediction is not None:
                mean, _ = predict(code.prediction, stars)
                scale = np.floor(np.clip(chosen(mean, column.null), 0, len(code.labels)) * 4)
        elif code.kind == "exact" and column.present.dtype.kind != "f":
            numbers = column.present.astype(np.int64)
        coded = columns.encode(code, stars, column, judge)
        own = coded.exceptions * (_EXCEPTION_BITS + 8.0 * getattr(column.values, "itemsize", 8))
        if code.kind == "exact" and numbers is None:
            own += 8.0 * column.present.nbytes
        if numbers is not None and code.kind == "category":
            own += _by_level(code.name, numbers, scale)
        elif numbers is not None:
            own += length(Stream(code.name, numbers, scale))
        bits[code.name] = own
    return bits


def _by_level(name: str, numbers: Integers, levels: Floats | None) -> float:
    """Categories, those of each predicted level by themselves where there are some tens of them."""
    if levels is None:
        return length(Stream(name, numbers))
    each, counts = np.unique(levels, return_counts=True)
    small = np.isin(levels, each[counts < 50])
    groups = [small, *((levels == level) & ~small for level in each)]
    return min(sum(length(Stream(name, numbers[group])) for group in groups if group.any()), length(Stream(name, numbers)))


# Rows -----------------------------------------------------------------------------------------------------------------
def real_rows(path: Path, which: str, kappas: Sequence[float]) -> str:
    """A table of code lengths, of the rows with the archive's digits and of the rounded ones."""
    release = release_named("dr2")
    table, rounded = _read(path, which, release)
    told = []
    for title, kind in (("archive precision", ~rounded), ("rounded", rounded)):
        rows = table.filter(pa.array(kind))
        by_hash = rows.take(pa.array(np.argsort(hash64(rows[SOURCE_ID].to_numpy()))))
        half = rows.num_rows // 2
        if half < 200:
            told.append(f"{title}: {rows.num_rows} rows, too few")
            continue
        fitted, coded = by_hash.slice(0, half), by_hash.slice(half)
        told += [f"{title}, {table.num_columns} columns: fitted to {half:,} stars, of {coded.num_rows:,} others, bytes a star", ""]
        told += [*_lines(fitted, coded, release, kappas), ""]
    return "\n".join(told)


def _lines(fitted: pa.Table, coded: pa.Table, release: Release, kappas: Sequence[float]) -> list[str]:
    heads = ("κ", "B2", "B3", "B4", "B4s", "ours", "ours of B2", "B3", "B4", "B4s")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for kappa in kappas:
        bounds = tolerances(release, coded.column_names, kappa, {})
        schemes = {"B2": {}, "B3": {"recompute": True}, "B4": {"recompute": True, "pixel": True}}
        sizes = {}
        for name, choices in schemes.items():
            bits = bits_of_grids(coded, bounds, release, choices)
            sizes[name] = sum(bits.values()) / coded.num_rows + ID_BITS[name]
        sizes["B4s"] = sizes["B4"] - ID_BITS["B4"] + SPLIT_ID_BITS
        card = fit_codec(fitted, bounds, kappa, release, LARGE)
        ours = sum(bits_of_ours(coded, card, release).values()) / coded.num_rows + SPLIT_ID_BITS
        cells = [f"{kappa:g}", *(f"{size / 8:.1f}" for size in sizes.values()), f"{ours / 8:.1f}"]
        lines.append(f"| {' | '.join([*cells, *(f'{ours / size:.3f}' for size in sizes.values())])} |")
    return lines


def _read(path: Path, which: str, release: Release) -> tuple[pa.Table, NDArray[np.bool_]]:
    """Rows that have what the bounds are made of, in the release's types, and which of them were rounded by those who passed them on."""
    table = pq.read_table(path)
    names = [SOURCE_ID, *SEED25] if which == "seed25" else [n for n in release.columns if n in table.column_names]
    needed = _NEEDED if which == "seed25" else (*_NEEDED, "solution_id", "designation")
    keep = pc.and_(pc.is_valid(table[needed[0]]), pc.is_valid(table[needed[1]]))
    for name in needed[2:]:
        keep = pc.and_(keep, pc.is_valid(table[name]))
    table = table.filter(keep)
    _, first = np.unique(table[SOURCE_ID].to_numpy(), return_index=True)
    table = table.take(pa.array(first))
    table = pa.table({name: table[name].cast(release.columns[name].dtype, safe=False) for name in names})
    digits = np.array([[_digits(value) for value in table[name].to_pylist()] for name in _MEASURED if name in names])
    return table, np.nanmedian(digits, axis=0) < _DIGITS


def _digits(value: float | None) -> float:
    """Decimal digits that a number was written with; those that a float32 was made of count as seven."""
    if value is None or not np.isfinite(value):
        return np.nan
    return 7.0 if float(np.float32(value)) == value else float(len(f"{value!r}".split("e")[0].replace(".", "").strip("-0")))
