"""Loops of training, compiled. Imported when a function is first called: numba takes half a second to import."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gaiadask.compiled import compiled

Floats = NDArray[np.float32]


@compiled
def decode(
    codes: NDArray[np.int16],
    lowest_and_most: tuple[int, int],
    places: tuple[Floats, Floats],
    bits: tuple[NDArray[np.int64], NDArray[np.int16]],
    halves: Floats,
    batch: tuple[Floats, NDArray[np.bool_], Floats, Floats],
) -> bool:
    """Write the stars of codes where no number lies in a tail; returns whether one does.

    Args:
        codes: shape (n, width), as `training.codes` has them.
        lowest_and_most: the code of a null, and the largest whose step is even.
        places: of each coded number, what code 0 stands for and the distance between codes.
        bits: of each null bit, its word's place in a row and its place there.
        halves: what the bits of each 16-bit float stand for, by those as a number from 0 on.
        batch: values, presence, condition and errors, shape (n, …), written to.
    """
    null, most = lowest_and_most
    middle, step = places
    words, shifts = bits
    values, present, condition, errors = batch
    n_values, numbers = values.shape[1], len(middle)
    first_error, in_tail = codes.shape[1] - errors.shape[1], False
    for i in range(codes.shape[0]):
        for column in range(n_values):
            code = np.int32(codes[i, column])
            known = code != null
            # In float64, where nothing is rounded: as if product and sum were one operation, as torch has it.
            found = np.float64(middle[column]) + code * np.float64(step[column])
            values[i, column] = np.float32(found if known else 0.0)
            present[i, column] = known
            in_tail |= bool(known & (abs(code) > most))
        for column in range(n_values, numbers):
            code = np.int32(codes[i, column])
            condition[i, column - n_values] = np.float32(np.float64(middle[column]) + code * np.float64(step[column]))
            in_tail |= bool(abs(code) > most)
        for bit in range(len(words)):
            condition[i, numbers - n_values + bit] = np.float32((codes[i, words[bit]] >> shifts[bit]) & 1)
        for column in range(errors.shape[1]):
            errors[i, column] = halves[np.uint16(codes[i, first_error + column])]
    return in_tail
