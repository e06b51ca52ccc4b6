"""An archive of mock stars: the physics, the errors, the gaps and the edges of the real one, without a network.

The same `mock_stars` and `mock_seed` give the same stars, however they are cut into chunks and wherever they are made.
`mock_stars` counts the sky before the selection; about half of it has all 25 columns.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from gaiadask.archive.base import Archive, SelectedIdentity
from gaiadask.archive.chunks import Chunk, Note, Plan, regrouped, runs_about
from gaiadask.archive.mock.measure import measure
from gaiadask.archive.mock.sky import Dust, MockSky, class_counts
from gaiadask.archive.mock.star import draw_motion, draw_nature
from gaiadask.archive.selection import apply, limit_threshold, needed_columns, needed_schema
from gaiadask.errors import ArchiveError, ConfigurationError
from gaiadask.release.column import SOURCE_ID
from gaiadask.sky import SOURCE_ID_STOP, healpix_of_source_id
from gaiadask.store.paths import Tile

VERSION = 2
"""Of the mock sky: raised whenever the same seed would give other stars."""

TABLE_ROWS = 200_000
"""At most so many rows in one table: small tables cost time when they are selected from, large ones memory."""


class MockIdentity(SelectedIdentity):
    """Size, seed and version of the sky, and the selection."""

    version: int = Field(description="of the mock sky")
    mock_stars: int = Field(description="stars of the whole sky")
    mock_seed: int = Field(description="seed of the sky")


class MockArchive(Archive):
    """Mock stars behind the archive's interface."""

    @property
    def sky(self) -> MockSky:
        """Where the stars are."""
        return MockSky(self.config.mock_stars, self.config.mock_seed)

    def identity(self) -> MockIdentity:
        """Kind, size, seed and version of the sky, and the selection."""
        return MockIdentity(
            kind="mock",
            version=VERSION,
            mock_stars=self.config.mock_stars,
            mock_seed=self.config.mock_seed,
            columns=self.selection.column_names,
            not_null=tuple(sorted(self.selection.not_null_names)),
            where=self.selection.where,
            limit=self.selection.limit,
        )

    def plan(self) -> Plan:
        """Chunks of about `chunk_rows` stars.

        Row counts are exact, unless not_null or where select among the stars: then the histogram is that of all stars. With
        a limit the selected stars are counted, so everything is exact again, at the price of making each star once.

        Raises:
            ConfigurationError: the condition cannot be evaluated, or mock stars have no such column.
        """
        if lacking := [name for name in needed_columns(self.selection) if name not in self.release.mock_columns]:
            raise ConfigurationError(
                f"archive.kind 'mock': mock stars have no {', '.join(lacking)}. Choose selection.columns (and not_null and "
                f"where) among {', '.join(self.release.mock_columns)}, or take the stars from files or a TAP service"
            )
        sky = self.sky
        width = Tile(sky.order, 0).source_ids[1]
        bounds = [(run.first * width, run.stop * width) for run in runs_about(sky.tile_counts, self.config.chunk_rows)]
        if self.selection.limit:
            return self._limited_plan(bounds)
        histogram = sky.pixel_counts
        exact = not (self.selection.not_null_names or self.selection.where)
        return Plan(sky.pixel_order, histogram, _chunks(bounds, histogram if exact else None))

    def _limited_plan(self, bounds: list[tuple[int, int]]) -> Plan:
        key = self.release.schema([SOURCE_ID])
        threshold = int(limit_threshold(self._selected(0, SOURCE_ID_STOP, key, None), self.selection.limit))
        order = self.sky.pixel_order
        histogram = np.zeros(12 * 4**order, dtype=np.int64)
        for table in self._selected(0, SOURCE_ID_STOP, key, threshold):
            pixels = healpix_of_source_id(table[SOURCE_ID].to_numpy(), order)
            histogram += np.bincount(pixels, minlength=len(histogram))
        return Plan(order, histogram, _chunks(bounds, histogram, threshold))

    def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
        """The selected stars of the chunk, by ascending source_id, in tables of at most `TABLE_ROWS` rows.

        Raises ConfigurationError for a condition that cannot be evaluated, ArchiveError for a chunk of another plan.
        """
        if self.selection.limit and chunk.hash_limit is None:
            raise ArchiveError(f"chunk {chunk.name}: planned without the limit of {self.selection.limit} stars: plan again")
        yield from self._selected(chunk.first, chunk.stop, self.schema, chunk.hash_limit)

    def _selected(self, first: int, stop: int, schema: pa.Schema, hash_limit: int | None) -> Iterator[pa.Table]:
        """Selected stars of a source_id range, in the columns of `schema`."""
        needed = needed_schema(self.selection)
        # Uncut, so that parts in a store are as they have always been.
        for stars in regrouped(self._tables(first, stop, needed), TABLE_ROWS, cut=False):
            selected = apply(stars, self.selection, schema, hash_limit)
            if len(selected):
                yield selected

    def _tables(self, first: int, stop: int, schema: pa.Schema) -> Iterator[pa.Table]:
        """Stars of a source_id range, tile by tile."""
        sky = self.sky
        width = Tile(sky.order, 0).source_ids[1]
        for tile in range(first // width, -(-stop // width)):
            stars = mock_stars(sky, tile, schema)
            bounds = np.searchsorted(stars[SOURCE_ID].to_numpy(), [first, stop])
            yield stars.slice(bounds[0], bounds[1] - bounds[0])


def mock_stars(sky: MockSky, tile: int, schema: pa.Schema) -> pa.Table:
    """All stars of one tile by ascending source_id, in the columns of `schema`; null where the archive has none."""
    rng = sky.generator(tile)
    lines = sky.sightlines(tile, rng)
    nature = draw_nature(class_counts(lines.direction, lines.patches, lines.g_mag), rng)
    dust = Dust.along(lines.direction[:, 2], lines.patches)
    away = dust.distance(lines.g_mag - nature.absolute_g, steps=6)
    a_g = dust.extinction(away)
    g_mag = nature.absolute_g + 5 * np.log10(away) + 10 + a_g
    motion = draw_motion(nature, lines.direction, away, rng)
    values: dict[str, NDArray] = measure(nature, motion, g_mag, away, a_g, lines.ra, lines.dec, rng)
    values |= {SOURCE_ID: lines.source_id, "random_index": sky.random_index(tile)}
    # from_pandas: NaN is null.
    return pa.table([pa.array(values[field.name], field.type, from_pandas=True) for field in schema], schema=schema)


def _chunks(bounds: list[tuple[int, int]], histogram: NDArray[np.int64] | None, limit: int | None = None) -> tuple[Chunk, ...]:
    """Chunks of these source_id ranges, with their rows where there is a histogram by source_id."""
    width = 1 if histogram is None else SOURCE_ID_STOP // len(histogram)
    rows = [None if histogram is None else int(histogram[first // width : stop // width].sum()) for first, stop in bounds]
    return tuple(
        Chunk(f"mock-{i:05d}", first, stop, expected_rows=expected, hash_limit=limit)
        for i, ((first, stop), expected) in enumerate(zip(bounds, rows, strict=True))
    )
