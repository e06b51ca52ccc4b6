"""Cells in torch: the intervals of network values that stand for one value of a column each, which many stars share.

To a flow a value in a cell is anywhere in it, as a normal distribution would have it there: uniform noise after Theis et al. (2016),
arXiv:1511.01844, section 3.1, in ranks. Then no density is to be won on values that repeat, and the evidence bound counts what they say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gaiadask.inputs import masses
from gaiadask.model.splines import LOG_ROOT_2_PI


class Drawn(NamedTuple):
    """Values with noise, and the entropy of the noise, nats; both of one shape."""

    values: Tensor
    entropy: Tensor


class Cells(NamedTuple):
    """The cells of those network values that have some.

    numbers: of these values, shape (k,), int64. low, high, centre: of their cells, ascending, shape (k, most), infinite where a value has
    fewer. rank_low, rank_high: shares of a normal distribution below both ends, of a cell above the middle with the sign of scores turned
    (`turn`, -1 there, else 1), where shares have all their digits; float64.
    """

    numbers: Tensor
    low: Tensor
    high: Tensor
    centre: Tensor
    rank_low: Tensor
    rank_high: Tensor
    turn: Tensor

    @classmethod
    def of(cls, cells: Mapping[int, masses.Cells]) -> Cells:
        """By the numbers of network values, as `Transform.cells` gives them."""
        most = max((len(each.low) for each in cells.values()), default=1)
        ends = np.full((3, len(cells), most), np.inf)
        for row, each in enumerate(cells.values()):
            ends[:, row, : len(each.low)] = each
        low, high, centre = torch.from_numpy(ends)
        turn = torch.where(low + high > 0, -1.0, 1.0)
        below, above = turn * torch.where(turn < 0, high, low), turn * torch.where(turn < 0, low, high)
        rank_low, rank_high = torch.special.ndtr(below), torch.special.ndtr(above)
        numbers = torch.tensor([*cells], dtype=torch.int64)
        return cls(numbers, low.float(), high.float(), centre.float(), rank_low, rank_high, turn)

    def __bool__(self) -> bool:
        return len(self.numbers) > 0

    def to(self, device: torch.device | str) -> Cells:
        """The same on a device."""
        return Cells(*(part.to(device) for part in self))

    def find(self, values: Tensor) -> Place:
        """The cells that values lie in, shape (k, n), those of one network value in a row."""
        number = torch.searchsorted(self.low, values.contiguous(), right=True).sub_(1).clamp_(min=0)
        return Place(number, (values >= self.low.gather(1, number)) & (values <= self.high.gather(1, number)))

    def row(self, row: int) -> Cells:
        """Those of one of the values."""
        return Cells(*(part[row : row + 1] for part in self))

    def snapped(self, values: Tensor) -> Tensor:
        """Values, shape (k, n), those in a cell at its centre."""
        place = self.find(values)
        return torch.where(place.inside, self.centre.gather(1, place.number), values)

    def widths(self, values: Tensor) -> Tensor:
        """Of stars' values, shape (n, n_values), the widths of the cells that they lie in, 0 where in none; of that shape."""
        place = self.find(values[:, self.numbers].T)
        own = (self.high - self.low).gather(1, place.number).masked_fill(~place.inside, 0.0)
        return torch.zeros_like(values).index_copy_(1, self.numbers, own.T)

    def put_back(self, values: Tensor, noisy: Tensor) -> Tensor:
        """Noisy values of stars, shape (n, n_values), but those in a cell without noise."""
        own = values[:, self.numbers]
        inside = self.find(own.T).inside.T
        return noisy.index_copy(1, self.numbers, torch.where(inside, own, noisy[:, self.numbers]))

    def spread_out(self, values: Tensor, uniform: Tensor, noisy: Drawn) -> Drawn:
        """Noisy values of stars, shape (n, n_values), but those in a cell are anywhere in it.

        values: without noise. uniform: numbers from 0 to 1. noisy: values with noise, and its entropy. All of one shape.
        """
        place = self.find(values[:, self.numbers].T)
        low, high, turn = (part.gather(1, place.number) for part in (self.rank_low, self.rank_high, self.turn))
        share = (high - low).clamp(min=1e-300)
        score = torch.special.ndtri(low + share * uniform[:, self.numbers].T.double())
        entropy = share.log() + 0.5 * score.square() + LOG_ROOT_2_PI
        drawn = []
        for before, new in zip(noisy, (score * turn, entropy), strict=True):
            own = torch.where(place.inside.T, new.T.to(before), before[:, self.numbers])
            drawn.append(before.index_copy(1, self.numbers, own))
        return Drawn(*drawn)

    def anywhere(self, values: Tensor, uniform: Tensor) -> Tensor:
        """Values of stars, shape (n, n_values), those in a cell anywhere in it. uniform: numbers from 0 to 1, of that shape."""
        return self.spread_out(values, uniform, Drawn(values, values)).values


class Place(NamedTuple):
    """Where values lie: number of the cell, or of the last below, and whether they are inside; shape (k, n) each."""

    number: Tensor
    inside: Tensor
