"""The order in which a pass shows the stars: a pseudo-random permutation that is computed, not stored.

Star numbers 0 to n - 1 are laid out on a grid of about the square root of n on each side, and shuffled by a Feistel network: each
round shifts every column of the grid by a random number of its own, then every row. The few places of the grid beyond n are sent
round again until they fall below it ("cycle walking"; Black and Rogaway 2002).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_ROUNDS = 3
"""Of two shifts each: four shifts are enough for no test of a few numbers to tell it from chance (Luby and Rackoff 1988)."""


@dataclass(frozen=True, eq=False)
class Order:
    """A permutation of the numbers 0 to n - 1, told by a seed and a pass; calculable for any of them.

    shifts: of each round, by how much each column is shifted, shape (columns,), and each row, shape (rows,), int64.
    """

    n: int
    shifts: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, n: int, seed: int, pass_number: int, device: torch.device | str = "cpu") -> Order:
        """The order of a pass over n stars (at least one), for places on a device."""
        rows = math.isqrt(n - 1) + 1
        columns = -(-n // rows)
        random = np.random.default_rng([seed, pass_number])
        drawn = ((random.integers(0, rows, columns), random.integers(0, columns, rows)) for _ in range(_ROUNDS))
        return cls(n, tuple((torch.from_numpy(a).to(device), torch.from_numpy(b).to(device)) for a, b in drawn))

    def __call__(self, places: Tensor) -> Tensor:
        """The numbers of the stars at these places of the order, int64, shape (m,), each from 0 to n - 1."""
        numbers = self._shuffled(places)
        while bool((beyond := numbers >= self.n).any()):
            numbers[beyond] = self._shuffled(numbers[beyond])
        return numbers

    def _shuffled(self, numbers: Tensor) -> Tensor:
        columns, rows = map(len, self.shifts[0])
        row = torch.div(numbers, columns, rounding_mode="floor")
        column = numbers - row * columns
        for of_column, of_row in self.shifts:
            row = _wrapped(of_column.index_select(0, column).add_(row), rows)
            column = _wrapped(of_row.index_select(0, row).add_(column), columns)
        return row.mul_(columns).add_(column)


def _wrapped(numbers: Tensor, side: int) -> Tensor:
    return torch.where(numbers < side, numbers, numbers - side)
