"""New stars: a pure function of a model, its prior, a number and a seed, and the same of a block of them, for workers.

Stars are made in blocks of a fixed size, each from its own child of the seed, so that which star comes out does not depend
on how many workers make them; and the first stars of a larger sample are those of a smaller one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.errors import ConfigurationError, DataError, MissingStageError
from gaiadask.inputs.nulls import is_null
from gaiadask.inputs.transform import Transform
from gaiadask.keys import digest
from gaiadask.model.source import ModelSource
from gaiadask.model.star_model import StarModel
from gaiadask.prior import Cone, Prior, SkyDensity, load_prior_cached, prior_identity
from gaiadask.product import Piece, write_piece
from gaiadask.records import JsonObject
from gaiadask.release.column import DEC, RA
from gaiadask.release.release import Release
from gaiadask.sky import healpix
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths, Tile
from gaiadask.voparquet import DESCRIPTION

# New stars in a file and in a task: some 3 MB of 25 columns. Part of what a seed means.
BLOCK_ROWS = 16_384
# Drawn at a time: also the step in which a sample grows, so it is part of what a seed means.
DRAWN_ROWS = 2_048
# Maximum number of redraws at one position: if half of all draws fail, one position in a million is lost.
MAX_REDRAWS = 20
# Drawing ends with an error where fewer than one draw in so many is accepted: bounds the time of an impossible request.
MAX_DRAWS_PER_STAR = 1_000
# And where of so many draws (each redrawn MAX_REDRAWS times: some hundred thousand tries) none is within the train stars' ranges.
MAX_DRAWS_OUTSIDE = 5 * DRAWN_ROWS

FLUX = "phot_g_mean_flux"
"""What G follows from."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SampleRegion:
    """Which new stars are asked for: those in a cone (ra, dec, radius in degrees) or a HEALPix tile, with G in a range of magnitudes; all by default."""

    cone: Cone | None = None
    tile: Tile | None = None
    magnitude: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Raises ConfigurationError for a cone or tile that is not on the sky, or an empty range."""
        if self.cone is not None and self.tile is not None:
            raise ConfigurationError("new stars in a cone or in a tile: name one of them, not both")
        if self.cone is not None:
            object.__setattr__(self, "cone", Cone(*self.cone).checked())
        if self.tile is not None and not (0 <= self.tile.order <= 29 and 0 <= self.tile.pixel < 12 << (2 * self.tile.order)):
            raise ConfigurationError(f"tile {self.tile}: expected an order of 0 to 29 and a pixel below 12 * 4**order")
        if self.magnitude is not None and not self.magnitude[0] < self.magnitude[1]:
            raise ConfigurationError(f"magnitude {self.magnitude}: expected the brighter (smaller) end first")

    @classmethod
    def of(cls, cone: Any = None, tile: Any = None, magnitude: Any = None) -> SampleRegion:
        """From what users give: lists, tuples or arrays of numbers; None is everywhere. Raises ConfigurationError naming the argument."""
        circle = None if cone is None else Cone(*_numbers("cone", cone, "ra, dec, radius in degrees"))
        pixel = None if tile is None else Tile(*(whole_number("tile", number) for number in _numbers("tile", tile, "order, pixel")))
        if magnitude is None:
            return cls(circle, pixel)
        bright, faint = _numbers("magnitude", magnitude, "the bright end, the faint end")
        return cls(circle, pixel, (bright, faint))

    def places(self, prior: Prior, release: Release) -> SkyDensity:
        """What positions are drawn from; refuses what cannot be drawn, before anything is.

        Raises:
            DataError: where no train star is near, or has a magnitude in the range.
            ConfigurationError: where G is limited and the model has no flux in G.
        """
        if self.magnitude is not None:
            if FLUX not in prior.limits:
                raise ConfigurationError(f"a range of magnitudes needs {FLUX} among the model's columns")
            bright, faint = (float(m) for m in release.g_magnitude(prior.limits[FLUX][::-1]))
            if self.magnitude[1] < bright or self.magnitude[0] > faint:  # of a flux not above 0 faint is NaN: no limit
                raise DataError(
                    f"magnitude {self.magnitude}: no new star is beyond the train stars' G, from {bright:.2f} to {faint:.2f}. Ask for a "
                    "range that overlaps with this one"
                )
        if self.cone is not None:
            return prior.sky.within_cone(self.cone)
        return prior.sky.within_tile(self.tile) if self.tile is not None else prior.sky

    def contains(self, columns: dict[str, Floats], release: Release) -> NDArray[np.bool_]:
        """Whether each star lies in the region, shape (n,); columns: physical, shape (n,) each."""
        keep = np.ones(len(columns[RA]), np.bool_)
        if self.cone is not None:
            keep &= self.cone.contains(columns[RA], columns[DEC])
        if self.tile is not None:
            keep &= healpix(columns[RA], columns[DEC], self.tile.order) == self.tile.pixel
        if self.magnitude is not None:
            if FLUX not in columns:
                raise ConfigurationError(f"a range of magnitudes needs {FLUX} among the model's columns")
            g = release.g_magnitude(columns[FLUX])
            keep &= (g >= self.magnitude[0]) & (g <= self.magnitude[1])
        return keep

    def to_json(self) -> JsonObject:
        return {
            "cone": list(self.cone) if self.cone else None,
            "tile": [self.tile.order, self.tile.pixel] if self.tile else None,
            "magnitude": list(self.magnitude) if self.magnitude else None,
        }


EVERYWHERE = SampleRegion()


def whole_number(name: str, value: Any, least: int = 0) -> int:
    """A whole number of at least `least`, 1e4 and numpy's among them. Raises ConfigurationError naming the argument."""
    (number,) = _numbers(name, [value], "one number")
    if not number.is_integer() or number < least or number >= 2**63:
        raise ConfigurationError(f"{name}={value!r}: expected a whole number of at least {least}")
    return int(value)


def _numbers(name: str, values: Any, meaning: str) -> tuple[float, ...]:
    """As many numbers as `meaning` has words between commas."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != meaning.count(",") + 1:
        raise ConfigurationError(f"{name}={values!r}: expected {meaning}, as plain numbers")
    return numbers


def sample_schema(transform: Transform) -> pa.Schema:
    """Arrow schema of new stars: ra and dec, then the model's columns, with units and UCDs."""
    schema = transform.release.schema(dict.fromkeys((RA, DEC, *transform.columns)))
    return schema.with_metadata({DESCRIPTION: "Simulated stars, drawn from a model's prior: no star of the sky is one of them"})


def blocks_of(stars: int) -> int:
    """How many blocks hold so many new stars."""
    return -(-stars // BLOCK_ROWS)


def sample(model: StarModel, prior: Prior, stars: int, seed: int = 0, region: SampleRegion = EVERYWHERE) -> pa.Table:
    """New stars in physical columns and units, drawn from a run's prior.

    Args:
        model: the trained model.
        prior: what latents, null masks and positions are drawn from, of the same model.
        stars: how many.
        seed: the same seed gives the same stars, and the first ones of more.
        region: of the sky and of G; everywhere by default.

    Returns:
        Columns of `sample_schema`, derived ones exactly consistent. Every value is finite and within the range of the train
        stars', or null where the star's null mask says so.

    Raises:
        DataError: where hardly any star is in the region.
        ConfigurationError: where the region limits G and the model has no flux in G.

    >>> from gaiadask.run import open_run
    >>> run = open_run("store/runs/dr2")
    >>> sample(run.model, run.prior, 3, seed=1).equals(sample(run.model, run.prior, 5, seed=1).slice(0, 3))
    True
    """
    blocks = [sample_block(model, prior, stars, seed, region, block) for block in range(blocks_of(stars))]
    return pa.concat_tables([sample_schema(model.transform).empty_table(), *blocks])


def sample_block(model: StarModel, prior: Prior, stars: int, seed: int, region: SampleRegion, block: int) -> pa.Table:
    """Draw one block of `sample`'s stars.

    Args:
        block: its number, from 0; a block has `BLOCK_ROWS` stars, the last one what is left. The other arguments are `sample`'s.
    """
    rows = max(0, min(BLOCK_ROWS, stars - block * BLOCK_ROWS))
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(block,)))
    sky = region.places(prior, model.transform.release)
    pieces, accepted, drawn, possible = [sample_schema(model.transform).empty_table()], 0, 0, 0
    while accepted < rows:
        if drawn >= MAX_DRAWS_OUTSIDE and not possible:
            raise DataError(
                f"of {drawn} stars drawn, each {MAX_REDRAWS} times, none is within the train stars' ranges ({region.to_json()}): the "
                "model knows too little of such places, or of so few train stars. Ask for another region, or ingest more stars"
            )
        if drawn >= MAX_DRAWS_PER_STAR * max(rows, DRAWN_ROWS) or (drawn >= MAX_DRAWS_PER_STAR * DRAWN_ROWS and not accepted):
            raise DataError(
                f"of {drawn} stars drawn only {accepted} are in the region asked for ({region.to_json()}) and within the train stars' ranges, "
                f"expected {rows}: ask for a wider range of magnitudes or a larger region"
            )
        piece, good = _drawn(model, prior, sky, region, random)
        possible += good
        pieces.append(piece.slice(0, rows - accepted))
        accepted, drawn = accepted + pieces[-1].num_rows, drawn + DRAWN_ROWS
    return pa.concat_tables(pieces)


def _drawn(
    model: StarModel, prior: Prior, sky: SkyDensity, region: SampleRegion, random: np.random.Generator
) -> tuple[pa.Table, int]:
    """Draw DRAWN_ROWS new stars; those of the region, with every value in the train stars' range, and how many are in that range.

    A draw outside the train range is redrawn at the same position with the same null mask: else positions and null masks of
    which many draws fail would become rarer than they are.
    """
    transform = model.transform
    ra, dec, masks = sky.draw(DRAWN_ROWS, random)
    pieces, waiting = [], np.arange(DRAWN_ROWS)
    for _ in range(MAX_REDRAWS):
        columns = _columns(model, prior, ra[waiting], dec[waiting], masks[waiting], random)
        good = _in_train_range(columns, prior)
        pieces.append((waiting[good], {name: column[good] for name, column in columns.items()}))
        waiting = waiting[~good]
        if not len(waiting):
            break
    order = np.argsort(np.concatenate([rows for rows, _ in pieces]))
    columns = {name: np.concatenate([piece[name] for _, piece in pieces])[order] for name in pieces[0][1]}
    keep = region.contains(columns, transform.release)
    schema = sample_schema(transform)
    arrays = []
    for field in schema:
        column = columns[field.name][keep]
        null = np.isnan(column)
        arrays.append(pa.array(np.where(null, 0, column).astype(field.type.to_pandas_dtype()), field.type, mask=null))
    return pa.table(arrays, schema=schema), len(keep)


def _columns(
    model: StarModel, prior: Prior, ra: Floats, dec: Floats, masks: NDArray[np.int64], random: np.random.Generator
) -> dict[str, Floats]:
    """Physical columns of new stars at these places, NaN where the mask says null; infinite where they are undefined."""
    transform = model.transform
    condition = transform.condition(pa.table([ra, dec], names=[RA, DEC]), masks)
    values = prior.values(model, condition, masks, random)
    carried = (ra, dec) if transform.position == "condition" else (None, None)
    columns = model.inverse(values, ra=carried[0], dec=carried[1], known=prior.point_mass_values(model, values))
    for i, name in enumerate(transform.columns):
        undefined = np.where(np.isnan(columns[name]), np.inf, columns[name])
        columns[name] = np.where(is_null(masks, i), np.nan, undefined)
    return columns


def _in_train_range(columns: dict[str, Floats], prior: Prior) -> NDArray[np.bool_]:
    """Whether each star's values that are not null lie within the range of the train stars."""
    good = np.isfinite(columns[RA]) & np.isfinite(columns[DEC])
    for name, column in columns.items():
        if name not in (RA, DEC):
            low, high = prior.limits.get(name, (-np.inf, np.inf))
            good &= np.isnan(column) | (np.isfinite(column) & (column >= low) & (column <= high))
    return good


def require_prior(manifest: Manifest) -> str:
    """Key of a run's prior.

    Raises:
        MissingStageError: where there is none, or the run was asked for none.
    """
    entry = manifest.require("prior")
    if entry.result.get("kind") == "none":
        raise MissingStageError(
            f"run {manifest.run.name!r} was made with prior.kind 'none', so no new stars: set another kind, then "
            "`gaiadask prior CONFIG --replace prior`"
        )
    return entry.key


# Blocks of a store ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SampleRequest:
    """Request for new stars: the prior (its key and a hash of its arrays), how many stars, the seed and the region."""

    prior_key: str
    prior_identity: str
    stars: int
    seed: int
    region: SampleRegion = EVERYWHERE

    @classmethod
    def of(
        cls, store: Store, manifest: Manifest, release: Release, stars: int, seed: int = 0, region: SampleRegion = EVERYWHERE
    ) -> SampleRequest:
        """From the run's prior. Raises MissingStageError where there is none, and what `SampleRegion.places` raises."""
        key = require_prior(manifest)
        region.places(load_prior_cached(store, manifest.run, key), release)
        return cls(key, prior_identity(store, manifest.run), stars, seed, region)

    def to_json(self) -> JsonObject:
        return {
            "prior": self.prior_key, "arrays": self.prior_identity, "stars": self.stars, "seed": self.seed, **self.region.to_json(),
        }  # fmt: skip

    @property
    def key(self) -> str:
        return digest(self.to_json())

    def piece(self, block: int) -> Piece:
        """The file of a block."""
        rows = min(BLOCK_ROWS, self.stars - block * BLOCK_ROWS)
        digits = max(5, len(str(blocks_of(self.stars) - 1)))  # so that names are in the order of blocks
        return Piece(f"part-{block:0{digits}d}.parquet", self.key, rows, f"block {block} of new stars")


@dataclass(frozen=True)
class SampleBlocks:
    """Draws blocks of new stars from a run's prior; for workers.

    Attributes:
        device: where the networks run, as `[cluster] device` names it.
    """

    store: Store
    run: RunPaths
    request: SampleRequest
    device: str = "cpu"

    def __call__(self, block: int) -> pa.Table:
        """The new stars of block number `block`."""
        prior = load_prior_cached(self.store, self.run, self.request.prior_key)
        model = ModelSource(self.store, self.run, prior.model_key, self.device).load()
        return sample_block(model, prior, self.request.stars, self.request.seed, self.request.region, block)

    def writer(self, output: Store) -> Callable[[int], int]:
        """A function that writes a block as a parquet file of `output`, and returns its rows."""
        return partial(self._write, output)

    def _write(self, output: Store, block: int) -> int:
        piece = self.request.piece(block)
        write_piece(output, piece, lambda: self(block))
        return piece.rows
