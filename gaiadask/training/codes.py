"""Stars as small integers: 16 bits a number, so that many more of them fit into a memory than as float32.

A value is counted in steps from the middle of its column: evenly up to LINEAR of the column's own standard deviations, where
nearly all stars are, and beyond that in its logarithm, so that any float32 has a code. A null is the lowest code of all, so that
which values are present takes no room. The catalogue's errors, which are at most 1, are 16-bit floats.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from gaiadask.compiled import fixed
from gaiadask.inputs.scaling import NORMAL_IQR
from gaiadask.inputs.statistics import TableStatistics
from gaiadask.inputs.transform import POSITION_SCALE, VECTOR_NAMES, NetworkInputs, Transform
from gaiadask.records import Record

Codes = NDArray[np.int16]

NULL = -32_768
LINEAR = 6.0
"""Standard deviations from the middle of a column within which steps are even."""
LINEAR_CODES = 28_000
"""Codes on either side for those; the others are for the tails."""
ERROR = LINEAR / LINEAR_CODES / 2
"""Largest error of a value within LINEAR standard deviations of its column's middle, in these: half a step, 1.1e-4."""
TAIL_ERROR = 0.02
"""Largest relative error of the distance from the middle, of values beyond."""
_MOST = 32_767
_STEP = LINEAR / LINEAR_CODES
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# A narrower column would need more codes for its tail than there are.
_NARROWEST = 1e-30
_BITS_A_WORD = 15


class Batch(NamedTuple):
    """Network inputs of n stars, as tensors.

    values: shape (n, n_values), float32, 0 where null. present: shape (n, n_values), bool. condition: shape (n, n_conditions),
    float32. sigma: for the loss alone, never an input: the catalogue's error of each value in the values' unit, shape (n, n_values),
    float32, 0 where it has none; shape (n, 0) where errors are not read.
    """

    values: Tensor
    present: Tensor
    condition: Tensor
    sigma: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor) -> Batch:
        """The stars at `index`, shape (m,), int64."""
        return Batch(*(part.index_select(0, index) for part in self))

    def to(self, device: torch.device | str) -> Batch:
        """The same stars on a device."""
        return Batch(*(part.to(device) for part in self))


class Codec(Record):
    """How stars are coded: a row of int16 each, its parts the values, the unit vector, the null bits and the errors."""

    middle: tuple[float, ...] = Field(description="of each value, then of each coordinate of a unit vector: what code 0 stands for")
    unit: tuple[float, ...] = Field(description="their standard deviations")
    n_values: int = Field(description="how many of them are values")
    null_bits: int = Field(description="how many of a condition's numbers are 0 or 1")
    sigmas: int = Field(description="how many errors there are: one a value, or none")

    @classmethod
    def fit(cls, transform: Transform, train: TableStatistics, *, errors: bool) -> Codec:
        """The codec of a transform's inputs, from the statistics of train stars. errors: whether the catalogue's are coded too."""
        ranges = [
            _middle_and_unit(column, train.columns[name].sketch.weights)
            for name in transform.free
            for column in transform.encodings[name].forward(train.columns[name].sketch.values).T
        ]
        if transform.position != "degrees":
            # Coordinates of a unit vector, times this scale, have no tails.
            ranges += [(0.0, 1.001 * POSITION_SCALE / LINEAR)] * len(VECTOR_NAMES)
        middle, unit = zip(*ranges, strict=True)
        bits, n_values = len(transform.null_groups), transform.n_values
        return cls(middle=middle, unit=unit, n_values=n_values, null_bits=bits, sigmas=n_values if errors else 0)

    @property
    def width(self) -> int:
        """Numbers of a star's row; each takes two bytes."""
        return len(self.unit) + self._words + self.sigmas

    @property
    def _words(self) -> int:
        return -(-self.null_bits // _BITS_A_WORD)

    def _table(self) -> _Table:
        unit = np.array(self.unit)
        furthest = np.log(_FLOAT32_MAX / LINEAR / unit)
        tables = (np.array(self.middle), unit * _STEP, np.log(LINEAR * unit), furthest / (_MOST - LINEAR_CODES))
        return _Table(*(table.astype(np.float32) for table in tables))

    def encode(self, inputs: NetworkInputs, sigma: NDArray[np.float32]) -> Codes:
        """Codes of n stars, shape (n, width), of their network inputs and errors (`Transform.sigma`)."""
        vector, bits = np.split(inputs.condition, [inputs.condition.shape[1] - self.null_bits], axis=1)
        codes = np.zeros((len(inputs.values), self.width), np.int16)
        numbers = len(self.unit)
        for i, column in enumerate(zip(*self._table(), strict=True)):
            x = inputs.values[:, i] if i < self.n_values else vector[:, i - self.n_values]
            codes[:, i] = _coded(x, *column)
        codes[:, : self.n_values][~inputs.present] = NULL
        for bit in range(self.null_bits):
            codes[:, numbers + bit // _BITS_A_WORD] |= bits[:, bit].astype(np.int16) << bit % _BITS_A_WORD
        codes[:, numbers + self._words :] = sigma.astype(np.float16).view(np.int16)
        return codes

    def decoder(self, device: torch.device | str) -> Decoder:
        """What makes batches of codes on a device."""
        words, shifts = np.divmod(np.arange(self.null_bits), _BITS_A_WORD)
        tables = (*self._table(), words, shifts.astype(np.int16))
        return Decoder(*(torch.from_numpy(table).to(device) for table in tables), self.n_values)  # type: ignore[arg-type, call-arg]


class _Table(NamedTuple):
    """Of each coded number: what code 0 stands for, the distance between codes, and in its tail the logarithms of the distance at which
    it begins and of the factor between two codes."""

    middle: NDArray[np.float32]
    step: NDArray[np.float32]
    edge: NDArray[np.float32]
    growth: NDArray[np.float32]


def _middle_and_unit(values: NDArray[np.float64], weights: NDArray[np.int64]) -> tuple[float, float]:
    """Median and standard deviation of weighted values; of those of which half are one value, about the distance to the others."""
    order = np.argsort(values)
    ranks = np.cumsum(weights[order]) / weights.sum()
    least, low, lower, half, upper, high, most = values[order][
        np.searchsorted(ranks, [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0 - 1e-12])
    ]
    unit = (upper - lower) / NORMAL_IQR or (high - low) / LINEAR or (most - least) / LINEAR
    return float(half), float(np.clip(unit, _NARROWEST, _FLOAT32_MAX / LINEAR / 2))


def _coded(x: NDArray[np.float32], middle: float, step: float, edge: float, growth: float) -> NDArray[np.int16]:
    with np.errstate(over="ignore"):  # what is further away than float32 reaches has the outermost code
        steps = (x - middle) / step
    tail = np.flatnonzero(np.abs(steps) > LINEAR_CODES)
    if tail.size:
        distance = np.log(np.abs(x[tail].astype(np.float64) - middle))
        beyond = LINEAR_CODES + np.maximum(distance - edge, 0) / growth
        steps[tail] = np.copysign(np.minimum(beyond, _MOST), steps[tail])
    return np.rint(steps).astype(np.int16)


class Decoder(NamedTuple):
    """Makes a `Batch` of codes, where its tables are.

    middle, step: of each coded number, what code 0 stands for and the distance between codes; edge, growth: logarithms of the
    distance at which its tail begins, and of the factor between two codes there. words, shifts: where each null bit is.
    """

    middle: Tensor
    step: Tensor
    edge: Tensor
    growth: Tensor
    words: Tensor
    shifts: Tensor
    n_values: int

    def __call__(self, codes: Tensor) -> Batch:
        """The stars of codes, shape (n, width), int16."""
        return (None if codes.is_cuda else self._on_host(codes)) or self._by_torch(codes)

    def _on_host(self, codes: Tensor) -> Batch | None:
        """The same stars in a fifth of the time; None where a number lies in a tail, as hardly ever one does."""
        from gaiadask.training import loops  # here: numba takes half a second to import

        n, numbers = len(codes), len(self.step)
        width = numbers - self.n_values + len(self.words), codes.shape[1] - numbers - self._n_words
        batch = Batch(
            torch.empty(n, self.n_values),
            torch.empty(n, self.n_values, dtype=torch.bool),
            torch.empty(n, width[0]),
            torch.empty(n, width[1]),
        )
        middle, step, words, shifts = (table.numpy() for table in (self.middle, self.step, self.words + numbers, self.shifts))
        values, present, condition, errors = (part.numpy() for part in batch)
        in_tail = loops.decode(
            fixed(codes.numpy()),
            (NULL, LINEAR_CODES),
            (middle, step),
            (words, shifts),
            _halves(),
            (values, present, condition, errors),
        )
        return None if in_tail else batch

    def _by_torch(self, codes: Tensor) -> Batch:
        """The same stars, where the codes are."""
        numbers = len(self.step)
        steps = codes[:, :numbers].to(torch.float32)
        null = steps == NULL
        steps.masked_fill_(null, 0)
        found = torch.addcmul(self.middle, steps, self.step)
        beyond = steps.abs() - LINEAR_CODES
        # Where tails are rare, looking for one costs less than computing all; on a GPU, looking would wait for it.
        if beyond.is_cuda or (len(codes) and float(beyond.max()) > 0):
            distance = torch.exp(torch.addcmul(self.edge, beyond, self.growth)).clamp_(max=_FLOAT32_MAX)
            tail = self.middle + torch.where(steps < 0, -distance, distance)
            found = torch.where(beyond > 0, tail.clamp_(-_FLOAT32_MAX, _FLOAT32_MAX), found)
        found.masked_fill_(null, 0)
        bits = codes[:, numbers:].index_select(1, self.words).bitwise_right_shift_(self.shifts).bitwise_and_(1)
        condition = torch.cat([found[:, self.n_values :], bits.to(torch.float32)], dim=1)
        errors = codes[:, numbers + self._n_words :].view(torch.float16).to(torch.float32)
        return Batch(found[:, : self.n_values], null[:, : self.n_values].logical_not(), condition, errors)

    @property
    def _n_words(self) -> int:
        return -(-len(self.shifts) // _BITS_A_WORD)


@lru_cache
def _halves() -> NDArray[np.float32]:
    """What the bits of each 16-bit float stand for, by those as a number."""
    return fixed(np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32))
