"""Stars like a given one: its nearest neighbours by their latents, exact, from k-d trees in memory (scipy's).

A latent counts in units of its precision, as card.json has it: a latent that is off by one such unit changes the rebuilt columns by their
interquartile range (the root of the sum of squares over columns). So a distance of 0.1 is, for a typical star, a tenth of the range that
half of all stars lie in, all columns together. Where latents are not rounded, their precisions are not known, and each counts in standard
deviations over validation stars.

Stars are compared with those that lack the same columns: latents of a star without, say, a radial velocity say something else than those
of a star that has one. Position counts nothing: latents do not have it, unless the model encodes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich import filesize
from scipy.spatial import cKDTree

from gaiadask.catalogue import iterate_file
from gaiadask.checks import check_id_range
from gaiadask.decode import ready
from gaiadask.errors import DataError, OutOfMemoryError
from gaiadask.frames import column_names
from gaiadask.inputs.nulls import Masks, read_masks
from gaiadask.model.source import ModelSource
from gaiadask.model.star_model import StarModel
from gaiadask.release.column import SOURCE_ID

NEIGHBOURS = pa.schema(
    [
        pa.field(SOURCE_ID, pa.int64(), metadata={"description": "the star whose neighbours these are"}),
        pa.field("rank", pa.int32(), metadata={"description": "1: the nearest"}),
        pa.field("neighbour", pa.int64(), metadata={"description": "source_id of the neighbour"}),
        pa.field("distance", pa.float64(), metadata={"description": "between latents, each over its precision"}),
    ]
)
_WHERE = "cannot find neighbours"
_MOST_IDS = 2**63 - 1
_NODE_BYTES = 24
"""Of a tree's nodes, a star (measured, leaves of 16 stars)."""


def latent_scales(model: StarModel) -> NDArray[np.float64]:
    """How large a unit of distance is along each latent, shape (latents,); infinite for one without bits, which says nothing."""
    precisions = np.array([code.precision if code.bits else np.inf for code in model.card.codes])
    if len(precisions) and (precisions > 0).all():
        return precisions
    deviations = np.array([latent.std for latent in model.card.latents] or [1.0] * model.latents)
    return np.where(deviations > 0, deviations, np.inf)


class Points(NamedTuple):
    """Stars as points: ids (n,), masks (n, words), and latents over their scales, those that say something, shape (n, d)."""

    ids: NDArray[np.int64]
    masks: Masks
    latents: NDArray[np.float32]

    @classmethod
    def of(cls, table: pa.Table, model: StarModel) -> Points:
        """The stars of a latent table, as files have it or as `encode` gives it."""
        return cls.scaled(table, model.latents_of(table, _WHERE), read_masks(table, len(model.transform.columns)), model)

    @classmethod
    def scaled(cls, table: pa.Table, z: NDArray[np.float32], masks: Masks, model: StarModel) -> Points:
        """The stars of these latents, shape (n, latents)."""
        scales = latent_scales(model)
        says = np.isfinite(scales)
        return cls(table[SOURCE_ID].to_numpy(), masks, (z[:, says] / scales[says]).astype(np.float32))


class _Alike(NamedTuple):
    """The stars of one null mask: ids, shape (n,), and the tree of their points, in the same order."""

    ids: NDArray[np.int64]
    tree: cKDTree


@dataclass(frozen=True, eq=False)
class LatentIndex:
    """All stars of a run's latents, to look for neighbours in.

    Attributes:
        stars: how many there are.
        origin: what the latents were made from, by name.
        alike: the stars of each null mask, by its words.
    """

    stars: int
    origin: Mapping[str, str]
    alike: Mapping[tuple[int, ...], _Alike]

    @classmethod
    def of(cls, parts: Iterable[Points], origin: Mapping[str, str]) -> LatentIndex:
        """An index of the stars of all parts."""
        ids, masks, points = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        patterns, pattern_of = _patterns(masks)
        alike = {}
        for number, words in enumerate(patterns):
            rows = np.flatnonzero(pattern_of == number) if len(patterns) > 1 else slice(None)
            # Cut in the middle of its range, not at the median: half of the time, and ties need no sorting.
            tree = cKDTree(points[rows], balanced_tree=False, compact_nodes=True)
            alike[tuple(int(word) for word in words)] = _Alike(ids[rows], tree)
        return cls(len(ids), dict(origin), alike)

    def points_of(self, source_ids: NDArray[np.int64]) -> Points:
        """Stars of the index, in this order. Raises DataError for a source_id that it does not have."""
        wanted = pa.array(source_ids)
        latents = np.empty((len(source_ids), next(iter(self.alike.values())).tree.m), np.float32)
        masks = np.empty((len(source_ids), len(next(iter(self.alike)))), np.int64)
        missing = np.ones(len(source_ids), np.bool_)
        for words, stars in self.alike.items():
            rows = np.flatnonzero(pc.is_in(pa.array(stars.ids), value_set=wanted).to_numpy(zero_copy_only=False))
            place = pc.index_in(wanted, value_set=pa.array(stars.ids[rows]))
            here = pc.is_valid(place).to_numpy(zero_copy_only=False)
            latents[here] = stars.tree.data[rows[place.drop_null().to_numpy()]]
            masks[here], missing[here] = words, False
        if missing.any():
            raise DataError(
                f"{_WHERE} of {SOURCE_ID} {source_ids[missing][0]} ({missing.sum()} of {len(source_ids)} stars asked for): the run's "
                f"catalogue of {self.stars:,} stars does not have it. Encode such stars, `run.encode(frame)`, and give their latents"
            )
        return Points(source_ids, masks, latents)

    def nearest(self, stars: Points, k: int) -> pa.Table:
        """The neighbours of stars: see `NEIGHBOURS`.

        Args:
            stars: in or out of the index; a star is no neighbour of itself.
            k: how many neighbours each gets; fewer where fewer stars lack the same columns.

        Raises:
            DataError: there are not so many stars.
        """
        if k >= self.stars:
            raise DataError(
                f"k={k}: the catalogue has {self.stars:,} stars, so that a star has at most {self.stars - 1:,} neighbours"
            )
        found: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        masks, mask_of = _patterns(stars.masks)
        for number, words in enumerate(masks):
            rows, group = np.flatnonzero(mask_of == number), self.alike.get(tuple(int(word) for word in words))
            if group is None:
                continue
            # One more: the star itself.
            distances, places = group.tree.query(stars.latents[rows], k=min(k + 1, group.tree.n), workers=-1)
            distances, places = (a.reshape(len(rows), -1) for a in (distances, places))
            found |= {int(r): (group.ids[p], d) for r, p, d in zip(rows, places, distances, strict=True)}
        own = [_neighbours(int(star), *found[row], k) for row, star in enumerate(stars.ids) if row in found]
        return pa.concat_tables([NEIGHBOURS.empty_table(), *own])


def _patterns(masks: Masks) -> tuple[Masks, NDArray[np.int64]]:
    """Each different mask, shape (patterns, words), and the number of the one that each star has, shape (n,)."""
    pattern_of = np.zeros(len(masks), np.int64)
    for word in masks.T:
        numbers, values = pd.factorize(word)
        pattern_of = pd.factorize(pattern_of * len(values) + numbers)[0]
    # Numbers are given in the order in which masks come.
    first = np.flatnonzero(np.diff(np.maximum.accumulate(pattern_of), prepend=-1))
    return masks[first], pattern_of


def _neighbours(star: int, ids: NDArray[np.int64], distances: NDArray[np.float64], k: int) -> pa.Table:
    """A star's neighbours but itself, the nearest first; of those that are as far that of smaller source_id."""
    order = np.lexsort((ids, distances))
    order = order[ids[order] != star][:k]
    columns = (np.full(len(order), star), np.arange(1, len(order) + 1, dtype=np.int32), ids[order], distances[order])
    return pa.table(list(columns), schema=NEIGHBOURS)


def check_memory(stars: int, model: StarModel) -> None:
    """Raise OutOfMemoryError where an index of so many stars does not fit into this machine's memory while it is made."""
    words, width = len(model.transform.mask_names), len(model.latent_columns)
    held = 8 + 8 * width + 8 + _NODE_BYTES
    needed = stars * (held + 8 + 8 * words + 4 * width)
    if needed > (free := psutil.virtual_memory().available):
        raise OutOfMemoryError(
            f"an index of {stars:,} stars takes {filesize.decimal(stars * held)} of memory, and while it is made {filesize.decimal(needed)}: "
            f"this machine has {filesize.decimal(free)} free. Use a machine with more memory, or a run of fewer stars"
        )


def points_of_file(source: ModelSource, file: tuple[str, Mapping[str, str]]) -> Points:
    """All stars of a file of latents; file: its name, and what its footer must say."""
    model = source.load()
    columns = [SOURCE_ID, *model.transform.mask_names, *model.latent_columns]
    parts = [Points.of(table, model) for table in iterate_file(source.store, file[0], columns, file[1])]
    return Points(*map(np.concatenate, zip(*parts, strict=True)))


def points_of(stars: Any, index: LatentIndex, model: StarModel) -> Points:
    """What stars are given by: source_ids of the index, or a frame of latents of any kind that `decode` takes, or dask's.

    Raises:
        DataError: for source_ids that are none or that the index does not have; for a frame, as `decode.ready`.
        KeyMismatchError: for latents that another model made.
    """
    if not _is_frame(stars):
        return index.points_of(_source_ids_of(stars))
    frame = stars.compute() if hasattr(stars, "compute") else stars
    if SOURCE_ID not in {name.lower() for name in column_names(frame, _WHERE)}:
        raise DataError(
            f"{_WHERE}: the frame has no {SOURCE_ID}, which tells whose neighbours they are: give all that `encode` gives"
        )
    latents = ready(frame, model, where=_WHERE)
    return Points.scaled(latents.table, latents.z, latents.masks, model)


def _is_frame(stars: Any) -> bool:
    return (
        isinstance(stars, Mapping)
        or any(hasattr(stars, name) for name in ("columns", "colnames", "column_names"))
        or bool(getattr(getattr(stars, "dtype", None), "names", None))
    )


def _source_ids_of(stars: Any) -> NDArray[np.int64]:
    try:
        ids = pa.array(np.atleast_1d(np.asarray(stars)))
        if not pa.types.is_integer(ids.type):  # floating-point numbers have lost digits
            raise TypeError(f"found values of type {ids.type}")
        numbers = ids.cast(pa.int64()).to_numpy()
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(
            f"{_WHERE}: expected {SOURCE_ID}s, whole numbers of 64 bits, or a frame of latents; {' '.join(str(error).split())[:200]}"
        ) from error
    check_id_range(numbers, 0, _MOST_IDS, _WHERE)
    return numbers
