"""What the report is made of, and the few questions its sections ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.config.sections import Config
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.release.dr2 import COLUMNS, g_magnitude
from gaiadask.release.formulas import absolute_magnitude
from gaiadask.report.ink import Floats
from gaiadask.report.pictures import Pair
from gaiadask.split import hash64

if TYPE_CHECKING:
    from gaiadask.quality import Rated

SCATTER_STARS = 50_000


@dataclass(frozen=True)
class ReportInputs:
    """Everything the page tells; nothing is read from a store.

    card, manifest, quality: as in card.json, manifest.json and quality.json. metrics: the records of metrics.jsonl.
    rated: the rated test stars. sky_counts: stars of the whole catalogue in each nested HEALPix pixel of one order
    (12 * 4**order elements), None: the rated stars are drawn instead. rows: numbers of stars by the name of the place
    where they were counted, in order ("archive", "fetched", "written", "encoded"). walks: stars rebuilt while a latent
    changes, columns star, latent, step and those of the HR diagram; None where there are none.
    """

    config: Config
    card: dict[str, Any]
    manifest: dict[str, Any]
    quality: dict[str, Any]
    metrics: list[dict[str, Any]]
    rated: Rated
    sky_counts: NDArray[Any] | None
    rows: dict[str, int]
    walks: pa.Table | None = None

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The model's columns, in the card's order."""
        return tuple(str(column["name"]) for column in self.card.get("columns", ())) or self.config.model_columns

    @property
    def stars(self) -> int:
        """How many test stars were rated."""
        return self.rated.real.num_rows

    @property
    def latents(self) -> int:
        return int(self.rated.latents.shape[1])

    @property
    def is_made_up(self) -> bool:
        return self.config.archive.kind == "mock"

    def pair(self, name: str) -> Pair:
        """One column real and rebuilt, by the baseline too where there is one."""
        baseline = self.rated.baseline
        rebuilt_by_pca = numbers(baseline, name) if baseline is not None and name in baseline.column_names else None
        return Pair(name, numbers(self.rated.real, name), numbers(self.rated.rebuilt, name), rebuilt_by_pca)

    @cached_property
    def g_mag(self) -> Floats | None:
        """G of the real stars, NaN where unknown; None where the catalogue has no G flux."""
        if "phot_g_mean_flux" not in self.rated.real.column_names:
            return None
        return g_magnitude(numbers(self.rated.real, "phot_g_mean_flux")).astype(np.float64)

    @cached_property
    def scatter_rows(self) -> NDArray[np.int64]:
        """Rows of at most SCATTER_STARS rated stars, those of smallest hash."""
        return np.argsort(hash64(self.rated.real[SOURCE_ID].to_numpy()))[:SCATTER_STARS]


def numbers(table: pa.Table, name: str) -> Floats:
    """One column as float64, shape (rows,), NaN where null or not finite."""
    values = np.asarray(table[name].to_numpy(), np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def residual(pair: Pair, dec: Floats | None = None) -> Floats:
    """Rebuilt minus real in the column's unit, NaN where either is null; of ra the short way round, times cos(dec)."""
    return _difference(pair.name, pair.rebuilt, pair.real, dec)


def baseline_residual(pair: Pair, dec: Floats | None = None) -> Floats | None:
    """The same of the baseline, None where there is none."""
    return None if pair.baseline is None else _difference(pair.name, pair.baseline, pair.real, dec)


def _difference(name: str, rebuilt: Floats, real: Floats, dec: Floats | None) -> Floats:
    if name != RA:
        return rebuilt - real
    wrapped = (rebuilt - real + 180.0) % 360.0 - 180.0
    return wrapped * np.cos(np.radians(dec)) if dec is not None else wrapped


def sigma_of(table: pa.Table, name: str) -> Floats | None:
    """Each star's own catalogue error of a column, in the column's unit; None where the table has no such column."""
    column = COLUMNS.get(name)
    if column is None or column.error_column is None or column.error_column not in table.column_names:
        return None
    sigma = column.error_factor * numbers(table, column.error_column)
    return np.where(sigma > 0, sigma, np.nan)


def colour_magnitude(table: pa.Table) -> tuple[Floats, Floats] | None:
    """bp_rp and M_G of the stars that have both; None where a column for it is missing."""
    if not {"bp_rp", "phot_g_mean_flux", "parallax"} <= set(table.column_names):
        return None
    colour = numbers(table, "bp_rp")
    magnitude = absolute_magnitude(g_magnitude(numbers(table, "phot_g_mean_flux")), numbers(table, "parallax"))
    known = np.isfinite(colour) & np.isfinite(magnitude)
    return colour[known], magnitude[known]


def positions_are_rebuilt(inputs: ReportInputs) -> bool:
    """Whether the rebuilt positions are the network's own: they are the catalogue's, to the bit, where it carries them."""
    tables = (inputs.rated.real, inputs.rated.rebuilt)
    if any(name not in table.column_names for name in (RA, DEC) for table in tables):
        return False
    return any(not np.array_equal(numbers(tables[0], n), numbers(tables[1], n), equal_nan=True) for n in (RA, DEC))
