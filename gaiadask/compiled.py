"""Functions of loops over arrays, compiled for the processor at their first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
Number = TypeVar("Number", bound=np.generic)


def compiled(function: Function) -> Function:
    """Compile a function of arrays and numbers to machine code, which runs without Python's lock.

    Every float operation is the single IEEE operation that is written, in the order in which it is written: no fast-math, no fused
    multiplication and addition, no sum in another order. So the result has the bits that numpy gives, on every processor.

    A function is compiled for the types of its first call (about a second) and from then on read from a cache beside the source, or
    in the user's cache directory where the package is read-only. Where neither can be written, each process compiles for itself.
    The cache only sees changes of the function's own file: so a compiled function calls compiled functions of its own module alone,
    and what is in files (tables of numbers) is an argument.

    Args:
        function: what numba can compile: loops, arrays, numbers, other compiled functions.

    Returns:
        A function with the same arguments and results.
    """
    import numba  # here: whoever only calls `fixed` does without

    try:
        return cast(Function, numba.njit(function, cache=True, nogil=True, error_model="numpy"))
    except RuntimeError:
        # numba finds no directory for its cache.
        return cast(Function, numba.njit(function, nogil=True, error_model="numpy"))


def fixed(array: NDArray[Number]) -> NDArray[Number]:
    """An array that a compiled function only reads, as one that cannot be written.

    For arrays that can be written, that cannot, that have gaps, and that are not aligned (as what came from another process) each
    function is compiled anew: so all that are read are made alike.
    """
    view = np.require(array, None, ("C_CONTIGUOUS", "ALIGNED")).view()
    view.setflags(write=False)
    return view
