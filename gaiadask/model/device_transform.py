"""The transform in torch: all columns of many stars at once, on any device, in float64, the same values as `Transform` gives.

On a processor numpy's transform is as fast, and it is what models are trained with; so this one is for GPUs, which would wait for the
former. It differs by the last bits of the device's logarithm, exponential and sines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from gaiadask.inputs.loops import MAX_LOGARITHM
from gaiadask.inputs.masses import MassMap
from gaiadask.inputs.nulls import BITS_A_WORD, Masks
from gaiadask.inputs.pieces import Pieces
from gaiadask.inputs.scaling import FLOAT32_MAX, HALF_MAX, LinearMap, QuantileMap
from gaiadask.inputs.statistics import column_values
from gaiadask.inputs.transform import POSITION_SCALE, Transform
from gaiadask.release.column import DEC, RA

# A ratio that exceeds float64 is made smaller by this power of two, and its logarithm larger again.
_SHIFT = 1001


class RawStars(NamedTuple):
    """Columns of n stars as they are in a catalogue.

    numbers: shape (columns, n), float64: those that `DeviceTransform.columns` names, then ra and dec, degrees; where null, any finite number.
    masks: null masks, shape (words, n), int64.
    errors: shape (columns, n), float64: the error of each of those columns, NaN where it is null or has none; shape (0, n) where not asked for.
    """

    numbers: Tensor
    masks: Tensor
    errors: Tensor

    def to(self, device: torch.device) -> RawStars:
        """On a device; the copy is not waited for where the tensors are pinned."""
        return RawStars(*(part.to(device, non_blocking=True) for part in self))


class DeviceInputs(NamedTuple):
    """What the network is given of n stars, as `NetworkInputs` has it, and `Transform.sigma`, shape (n, 0) where there are no errors."""

    values: Tensor
    present: Tensor
    condition: Tensor
    sigma: Tensor


@dataclass(frozen=True, eq=False)
class _Lines:
    """The `Pieces` of several columns, those first that need most halvings; each table begins where that of the column before ends.

    Attributes:
        first, per_unit: shape (columns, 1).
        starts: shape (columns * intervals,): numbers of pieces, counted over all columns.
        offsets: where each column's intervals begin among them, shape (columns, 1).
        knots: with infinities after each column's; at, to, slopes: a knot of each piece, x and value, and its slope.
        halving: for each step, a power of two, how many of the columns take it.
    """

    first: Tensor
    per_unit: Tensor
    starts: Tensor
    offsets: Tensor
    knots: Tensor
    at: Tensor
    to: Tensor
    slopes: Tensor
    halving: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, columns: Sequence[Pieces]) -> _Lines:
        """columns: in descending order of `steps`."""
        starts, tables, before = [], [], 0
        for pieces in columns:
            knots = pieces.padded
            starts.append(pieces.starts + before)
            ends = [np.pad(part, (0, len(knots) - len(part)), "edge") for part in (*pieces.anchors, pieces.slopes)]
            tables.append(np.stack([knots, *ends]))
            before += len(knots)
        table = torch.from_numpy(np.concatenate([np.empty((4, 0)), *tables], axis=1))
        most = columns[0].steps if columns else 0
        return cls(
            first=_column([pieces.first for pieces in columns]),
            per_unit=_column([pieces.per_unit for pieces in columns]),
            starts=torch.from_numpy(np.concatenate([np.empty(0), *starts]).astype(np.int32)),
            offsets=_column(np.cumsum([0, *(len(pieces.starts) for pieces in columns)])[:-1].tolist(), torch.int32),
            knots=table[0].contiguous(),
            at=table[1].contiguous(),
            to=table[2].contiguous(),
            slopes=table[3].contiguous(),
            halving=tuple((1 << i, sum(pieces.steps > i for pieces in columns)) for i in reversed(range(most))),
        )

    def piece(self, x: Tensor) -> Tensor:
        """Number of the piece of each x, shape (columns, n), counted over all columns; shape (columns * n,)."""
        last = len(self.starts) // max(len(x), 1) - 1
        # NaN is in the first interval: fmax and fmin pass over it.
        place = torch.fmax((x - self.first).mul_(self.per_unit), x.new_zeros(()))
        interval = torch.fmin(place, x.new_tensor(float(last))).to(torch.int32).add_(self.offsets)
        piece = self.starts.index_select(0, interval.reshape(-1)).view(x.shape)
        for step, columns in self.halving:
            own = piece[:columns]
            reached = self.knots.index_select(0, (own + (step - 1)).reshape(-1)).view(own.shape) <= x[:columns]
            own.add_(reached, alpha=step)
        return piece.reshape(-1)

    def value(self, x: Tensor, piece: Tensor) -> Tensor:
        """Values at x, shape (columns, n)."""
        distance = x - self.at.index_select(0, piece).view(x.shape)
        return distance.mul_(self.slopes.index_select(0, piece).view(x.shape)).add_(self.to.index_select(0, piece).view(x.shape))


@dataclass(frozen=True, eq=False)
class _Constants:
    """Of the columns, shape (columns, 1) each, or one number a column.

    places: number of each column's network value. quantile: how many of the columns are quantile maps; they come first.
    half_location, scale_2, scale_shifted: of those, location / 2, 2 / s and that times 2**-_SHIFT. half_scale: s / 2. log_half_scale: its
    logarithm. location, scale: of the linear ones. word, bit: of the column in a null mask; group_word, group_bit: of null groups.
    factor: of errors.
    """

    places: Tensor
    half_location: Tensor
    scale_2: Tensor
    scale_shifted: Tensor
    half_scale: Tensor
    log_half_scale: Tensor
    location: Tensor
    scale: Tensor
    word: Tensor
    bit: Tensor
    group_word: Tensor
    group_bit: Tensor
    factor: Tensor


class _Shared(NamedTuple):
    """Of scores, shape (k, n): the mass whose cell each is taken for, and whether it is."""

    values: Tensor
    is_mass: Tensor


@dataclass(frozen=True, eq=False)
class _Masses:
    """The `MassMap` columns among the columns, by their rows, shape (k,).

    masses, low, high, centre: ascending, shape (k, most), infinite where a column has fewer. before: width of all cells before each, and
    then of all, shape (k, most + 1). closed: of each whether what lies between two cells is of the nearer, shape (k, 1). ends: number of
    its cells, of that shape.
    """

    rows: Tensor
    masses: Tensor
    low: Tensor
    high: Tensor
    centre: Tensor
    before: Tensor
    closed: Tensor
    ends: Tensor

    @classmethod
    def of(cls, encodings: Mapping[int, object]) -> _Masses:
        maps = {row: each for row, each in encodings.items() if isinstance(each, MassMap)}
        most = max((len(each.masses) for each in maps.values()), default=1)
        tables = np.full((4, len(maps), most), np.inf)
        before = np.zeros((len(maps), most + 1))
        for row, each in enumerate(maps.values()):
            tables[:, row, : len(each.masses)] = (each.masses, *each.cells)
            before[row] = np.pad(each.before, (0, most - len(each.masses)), "edge")
        masses, low, high, centre = torch.from_numpy(tables)
        return cls(
            rows=torch.tensor([*maps], dtype=torch.int64),
            masses=masses,
            low=low,
            high=high,
            centre=centre,
            before=torch.from_numpy(before),
            closed=torch.tensor([each.closed for each in maps.values()], dtype=torch.bool).reshape(-1, 1),
            ends=_column([len(each.masses) for each in maps.values()], torch.int64),
        )

    def cut_open(self, x: Tensor, scores: Tensor) -> None:
        """Scores of columns, shape (columns, n), of the bases, as those with cells; x: the columns' values."""
        own = x.index_select(0, self.rows)
        number = torch.searchsorted(self.masses, own)
        nearest = number.clamp(max=self.masses.shape[1] - 1)
        cut = scores.index_select(0, self.rows) + self.before.gather(1, number)
        is_mass = self.masses.gather(1, nearest) == own
        scores.index_copy_(0, self.rows, torch.where(is_mass, self.centre.gather(1, nearest), cut))

    def close(self, scores: Tensor) -> _Shared:
        """What lies in cells, of scores of shape (columns, n), which become those of the bases."""
        s = scores.index_select(0, self.rows)
        number = torch.searchsorted(self.low, s, right=True)
        last = (number - 1).clamp(min=0)
        following = torch.minimum(number, self.ends - 1)
        high = self.high.gather(1, last)
        inside = (number > 0) & (s <= high)
        between = self.closed & ~inside & (number > 0) & (number < self.ends)
        is_next = between & (self.low.gather(1, following) - s < s - high)
        scores.index_copy_(0, self.rows, s - self.before.gather(1, number))
        return _Shared(self.masses.gather(1, torch.where(is_next, following, last)), inside | between)

    def put_in(self, columns: Tensor, shared: _Shared) -> Tensor:
        """Columns, shape (columns, n), with the masses where they are."""
        own = torch.where(shared.is_mass, shared.values, columns.index_select(0, self.rows))
        return columns.index_copy_(0, self.rows, own)


@dataclass(frozen=True, eq=False)
class DeviceTransform:
    """A `Transform` on a device.

    columns: the free columns in the order of its tensors.
    """

    transform: Transform
    columns: tuple[str, ...]
    quantiles: int
    forward_lines: _Lines
    inverse_lines: _Lines
    inverse_order: Tensor
    constants: _Constants
    masses: _Masses

    @classmethod
    def of(cls, transform: Transform, device: torch.device) -> DeviceTransform | None:
        """The transform on this device; None where one of its encodings has no form in torch."""
        maps = transform.encodings
        if not all(isinstance(each, QuantileMap | LinearMap | MassMap) for each in maps.values()):
            return None
        bases = {n: m.base if isinstance(m, MassMap) else m for n, m in maps.items()}
        curved = {n: m for n, m in bases.items() if isinstance(m, QuantileMap)}
        straight = {n: m for n, m in maps.items() if isinstance(m, LinearMap)}
        ordered = sorted(curved, key=lambda name: -curved[name].line.steps)
        back = sorted(range(len(ordered)), key=lambda i: -curved[ordered[i]].inverse_line.steps)
        columns = (*ordered, *straight)
        quantiles = [curved[name] for name in ordered]
        bits = [transform.columns.index(name) for name in columns]
        groups = [transform.columns.index(group[0]) for group in transform.null_groups]
        constants = _Constants(
            places=torch.tensor([transform.slots[name].start for name in columns], dtype=torch.int64),
            half_location=_column([m.location / 2 for m in quantiles]),
            scale_2=_column([math.ldexp(1.0, 1 - m.exponent) for m in quantiles]),
            scale_shifted=_column([math.ldexp(1.0, 1 - m.exponent - _SHIFT) for m in quantiles]),
            half_scale=_column([math.ldexp(1.0, m.exponent - 1) for m in quantiles]),
            log_half_scale=_column([(m.exponent - 1) * math.log(2) for m in quantiles]),
            location=_column([m.location for m in straight.values()]),
            scale=_column([m.scale for m in straight.values()]),
            word=torch.tensor([bit // BITS_A_WORD for bit in bits], dtype=torch.int64),
            bit=_column([bit % BITS_A_WORD for bit in bits], torch.int64),
            group_word=torch.tensor([bit // BITS_A_WORD for bit in groups], dtype=torch.int64),
            group_bit=_column([bit % BITS_A_WORD for bit in groups], torch.int64),
            factor=_column([transform.release.columns[name].error_factor for name in columns]),
        )
        lines = _Lines.of([m.line for m in quantiles]), _Lines.of([quantiles[i].inverse_line for i in back])
        cut = _Masses.of({row: maps[name] for row, name in enumerate(columns)})
        whole = cls(transform, columns, len(ordered), *lines, torch.tensor(back, dtype=torch.int64), constants, cut)
        return _moved(whole, device)

    def raw(self, table: pa.Table, masks: Masks, *, errors: bool = False, pinned: bool = False) -> RawStars:
        """The columns of a table's stars, on the host.

        Args:
            table: as `Transform.forward` takes it.
            masks: its null masks, as `Transform.null_bits` gives them, shape (n, words).
            errors: whether to take the columns' errors too, those that the table has.
            pinned: whether in memory that a GPU copies from while it computes.

        Raises:
            DataError: for a missing column, for NaN and infinities.
        """
        self.transform.require(table, (RA, DEC, *self.columns))
        numbers = torch.empty(len(self.columns) + 2, table.num_rows, dtype=torch.float64, pin_memory=pinned)
        for row, name in zip(numbers.numpy(), (*self.columns, RA, DEC), strict=True):
            row[:] = column_values(table, name)[0]
        words = torch.empty(masks.shape[::-1], dtype=torch.int64, pin_memory=pinned)
        words.numpy()[:] = masks.T
        known = self.transform.error_columns(table.column_names) if errors else ()
        sigma = torch.full((len(self.columns) if errors else 0, table.num_rows), math.nan, dtype=torch.float64, pin_memory=pinned)
        for row, name in zip(sigma.numpy(), self.columns, strict=False):
            if (error := self.transform.release.columns[name].error_column) in known:
                values, present = column_values(table, error)
                row[:] = np.where(present, values, np.nan)
        return RawStars(numbers, words, sigma)

    def forward(self, stars: RawStars) -> DeviceInputs:
        """Network inputs of stars that lie on the device, and their sigma."""
        constants, n = self.constants, stars.numbers.shape[1]
        present = (stars.masks.index_select(0, constants.word) >> constants.bit & 1) == 0
        x = stars.numbers[: len(self.columns)].masked_fill(~present, 0)
        curved, straight = x[: self.quantiles], x[self.quantiles :]
        half = curved * 0.5 - constants.half_location
        distance = half.abs()
        warped = _warped(distance, constants).copysign_(half)
        piece = self.forward_lines.piece(warped)
        linear = ((straight - constants.location) / constants.scale).clamp(-FLOAT32_MAX, FLOAT32_MAX)
        scores = torch.cat([self.forward_lines.value(warped, piece), linear])
        self.masses.cut_open(x, scores)
        values = stars.numbers.new_zeros(n, self.transform.n_values, dtype=torch.float32)
        values[:, constants.places] = scores.masked_fill_(~present, 0).T.to(torch.float32)
        has_value = torch.ones_like(values, dtype=torch.bool)
        has_value[:, constants.places] = present.T
        ra, dec = stars.numbers[-2:]
        vectors = _unit_vectors(ra, dec)
        if self.transform.position == "input":
            values[:, self.transform.vector_start :] = vectors
        bits = (stars.masks.index_select(0, constants.group_word) >> constants.group_bit & 1).T.to(torch.float32)
        condition = torch.cat([vectors, bits], dim=1) if self.transform.position == "condition" else bits
        sigma = values.new_zeros(n, self.transform.n_values if len(stars.errors) else 0)
        if len(stars.errors):
            slope = self.forward_lines.slopes.index_select(0, piece).view(warped.shape) / (distance + constants.half_scale) / 2
            slopes = torch.cat([slope, (1 / constants.scale).expand(straight.shape)])
            scaled = (stars.errors * (constants.factor * slopes)).clamp_(0, 1)
            sigma[:, constants.places] = scaled.masked_fill_(~present | stars.errors.isnan(), 0).T.to(torch.float32)
        return DeviceInputs(values, has_value, condition, sigma)

    def inverse(self, values: Tensor) -> Tensor:
        """The free columns of network values, shape (n, n_values) on the device: shape (columns, n), float64, as encodings give them."""
        constants = self.constants
        scores = values.index_select(1, constants.places).T.to(torch.float64)
        shared = self.masses.close(scores)
        curved, straight = scores[: self.quantiles].index_select(0, self.inverse_order), scores[self.quantiles :]
        u = torch.empty_like(curved)
        u[self.inverse_order] = self.inverse_lines.value(curved, self.inverse_lines.piece(curved))
        line = straight * constants.scale + constants.location
        halves = 2 * (straight * (constants.scale / 2) + constants.location / 2)
        line = torch.where(line.isfinite(), line, halves).clamp(-2 * HALF_MAX, 2 * HALF_MAX)
        return self.masses.put_in(torch.cat([_unwarped(u, constants), line]), shared)

    def columns_of(self, free: Tensor) -> dict[str, np.ndarray]:
        """What `inverse` gives, by name, on the host."""
        return dict(zip(self.columns, free.cpu().numpy(), strict=True))


def _warped(distance: Tensor, constants: _Constants) -> Tensor:
    """ln(1 + |d| / s) of half the distances |d|, shape (columns, n)."""
    ratio = distance * constants.scale_2
    far = ratio.isinf()
    ratio = torch.where(far, distance * constants.scale_shifted, ratio).log1p_()
    return ratio.add_(far, alpha=_SHIFT * math.log(2))


def _unwarped(u: Tensor, constants: _Constants) -> Tensor:
    """The x of warped values, shape (columns, n): as `QuantileMap` has it, in halves where the whole exceeds float64."""
    size = u.abs()
    half = torch.where(
        size > MAX_LOGARITHM,
        (size + constants.log_half_scale).exp_(),
        size.clamp(max=MAX_LOGARITHM).expm1_() * constants.half_scale,
    )
    half = half.copysign_(u).add_(constants.half_location)
    return half.clamp_(-HALF_MAX, HALF_MAX).mul_(2)


def _unit_vectors(ra: Tensor, dec: Tensor) -> Tensor:
    """Unit vectors times `POSITION_SCALE`, shape (n, 3) float32, of positions in degrees."""
    lon, lat = ra.deg2rad(), dec.deg2rad()
    vectors = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=1)
    return (POSITION_SCALE * vectors).to(torch.float32)


def _column(numbers: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(numbers, dtype=dtype).reshape(-1, 1)


def _moved(record: DeviceTransform, device: torch.device) -> DeviceTransform:
    """The same with every tensor on a device."""

    def moved(part: object) -> object:
        if isinstance(part, Tensor):
            return part.to(device)
        if isinstance(part, _Lines | _Constants | _Masses):
            return type(part)(**{field.name: moved(getattr(part, field.name)) for field in fields(part)})  # type: ignore[arg-type]
        return part

    parts: Mapping[str, object] = {field.name: moved(getattr(record, field.name)) for field in fields(record)}
    return DeviceTransform(**parts)  # type: ignore[arg-type]
