"""The content of the report, and the few questions that its sections ask of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.codec.compressed import CompressedRecord
from gaiadask.config.sections import Config
from gaiadask.model.card import MetricsRecord, ModelCard
from gaiadask.quality.physics import HR_COLUMNS, hr_position
from gaiadask.quality.rating import Rated
from gaiadask.quality.records import Quality
from gaiadask.quality.tables import Floats, finite_values
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.release.release import Release
from gaiadask.report.pictures import RealAndRebuilt
from gaiadask.sky import delta_ra_cos_dec
from gaiadask.split import hash64, smallest
from gaiadask.store.manifest import ManifestRecord

SCATTER_STARS = 50_000
"""Stars of a picture of latents, at most: more would hardly change it, and take longer to draw."""
FEWEST_HR_STARS = 10
"""Stars with a colour and an absolute magnitude without which an HR diagram shows nothing."""


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the page shows; nothing is read from a store.

    Args:
        config: the run's configuration.
        card: card.json of its model.
        manifest: its manifest.json.
        quality: its quality.json.
        metrics: the records of its metrics.jsonl, in order.
        rated: the rated test stars, and new stars.
        sky_counts: stars of the whole catalogue in each nested HEALPix pixel of one order (12 * 4**order elements); None:
            the rated stars are drawn instead.
        rows: numbers of stars by the name of the place where they were counted, in order ("written", "encoded").
        latent_traversal: stars rebuilt while a latent changes, columns star, latent, step and those of the HR diagram;
            None where there are none.
        compressed: what the run's compressed catalogue is; None where it has none.
    """

    config: Config
    card: ModelCard
    manifest: ManifestRecord
    quality: Quality
    metrics: Sequence[MetricsRecord]
    rated: Rated
    sky_counts: NDArray[Any] | None
    rows: Mapping[str, int]
    latent_traversal: pa.Table | None = None
    compressed: CompressedRecord | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The model's columns, in the card's order."""
        return tuple(column.name for column in self.card.columns)

    @property
    def release(self) -> Release:
        """The data release that the columns are of."""
        return self.rated.release

    @property
    def stars(self) -> int:
        """How many test stars were rated."""
        return self.rated.real.num_rows

    @property
    def latents(self) -> int:
        """How many numbers a star was encoded to."""
        return int(self.rated.latents.shape[1])

    @property
    def is_mock(self) -> bool:
        """Whether the stars are mock stars."""
        return self.config.archive.kind == "mock"

    @property
    def declination(self) -> Floats:
        """Of the real stars, degrees, NaN where unknown."""
        real = self.rated.real
        return finite_values(real, DEC) if DEC in real.column_names else np.full(self.stars, np.nan)

    def column(self, name: str) -> RealAndRebuilt:
        """One column real and rebuilt, by the baseline too where there is one."""
        baseline = finite_values(self.rated.baseline, name) if self.rated.baseline is not None else None
        real, rebuilt = (finite_values(table, name) for table in (self.rated.real, self.rated.rebuilt))
        return RealAndRebuilt(name, self.release.columns[name].unit, real, rebuilt, baseline)

    def hr_points(self, table: pa.Table) -> tuple[Floats, Floats] | None:
        """bp_rp and M_G of the stars that have both; None where a column for it is missing, or hardly any star has both."""
        if not set(HR_COLUMNS) <= set(table.column_names):
            return None
        places = hr_position(table, self.release)
        colour, magnitude = places[:, np.isfinite(places).all(axis=0)]
        return (colour, magnitude) if colour.size >= FEWEST_HR_STARS else None

    def sigma(self, name: str) -> Floats | None:
        """Each real star's own catalogue error of a column, in the column's unit; None where the catalogue has none."""
        column, real = self.release.columns[name], self.rated.real
        if column.error_column is None or column.error_column not in real.column_names:
            return None
        sigma = column.error_factor * finite_values(real, column.error_column)
        return np.where(sigma > 0, sigma, np.nan)

    @cached_property
    def g_mag(self) -> Floats | None:
        """G of the real stars, NaN where unknown; None where the catalogue has no G flux."""
        if "phot_g_mean_flux" not in self.rated.real.column_names:
            return None
        return self.release.g_magnitude(finite_values(self.rated.real, "phot_g_mean_flux")).astype(np.float64)

    @cached_property
    def scatter_rows(self) -> NDArray[np.int64]:
        """Rows of at most SCATTER_STARS rated stars, those of smallest hash."""
        return smallest(hash64(self.rated.real[SOURCE_ID].to_numpy()), SCATTER_STARS)

    @cached_property
    def positions_are_rebuilt(self) -> bool:
        """Whether the rebuilt positions are the network's own; where they are carried they are the catalogue's, to the bit."""
        tables = (self.rated.real, self.rated.rebuilt)
        if any(name not in table.column_names for name in (RA, DEC) for table in tables):
            return False
        pairs = ([finite_values(table, name) for table in tables] for name in (RA, DEC))
        return any(not np.array_equal(real, rebuilt, equal_nan=True) for real, rebuilt in pairs)


def residual(name: str, rebuilt: Floats, real: Floats, dec: Floats) -> Floats:
    """Rebuilt minus real in the column's unit, NaN where either is null; of ra times cos(dec), the short way round."""
    return delta_ra_cos_dec(rebuilt, real, dec) if name == RA else rebuilt - real
