"""How many bits each latent gets: by what its steps cost in the rebuilt columns, so that no bit would do more good elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaiadask.config.presets import MOST_BITS
from gaiadask.inputs.transform import Transform
from gaiadask.model.flow import Flow
from gaiadask.model.networks import Autoencoder
from gaiadask.training.codes import Batch
from gaiadask.training.group import Group

RATED_STARS = 4_096
"""Validation stars that a latent's precision is measured on, at most: it is known to some hundredths then, and a bit is a factor of 2."""
_PROBE = 2.0**-8
"""How far each latent is moved to see what that does: half a step of eight bits."""
_LEAST_PRECISE = 1e6


@torch.inference_mode()
def latent_precisions(network: Autoencoder | Flow, stars: Batch, transform: Transform) -> list[float]:
    """How far each latent may be off until it changes the rebuilt columns by their interquartile range, shape (latents,).

    Columns are those of the catalogue, derived ones among them: what is rated. Of each the median change over stars counts (where some
    stars' value does not change, as one in a cell does not, that of the others, times their share), over columns the root of the sum of squares. For a latent that changes nothing: a number far above its range.
    """
    network.eval()
    few = Batch(*(part[:RATED_STARS] for part in stars))
    present = few.present.cpu().numpy()

    def columns(values: Tensor) -> dict[str, NDArray[np.float64]]:
        return _columns(transform, values.cpu().numpy(), present)

    as_is, moved = network.moved(few.values, few.condition, _PROBE)
    rebuilt = columns(as_is)
    iqr = {name: _width(values) for name, values in rebuilt.items()}
    precisions = []
    for of_one in moved:
        changes = {name: _typical(np.abs(values - rebuilt[name])) for name, values in columns(of_one).items()}
        slope = float(np.linalg.norm([changes[name] / iqr[name] for name in changes if iqr[name] > 0])) / _PROBE
        precisions.append(1 / max(slope, 1 / _LEAST_PRECISE))
    return precisions


def _typical(changes: NDArray[np.float64]) -> float:
    moved = changes[changes > 0]
    return float(np.median(moved)) * len(moved) / len(changes) if len(moved) else 0.0


def _width(values: NDArray[np.float64]) -> float:
    """Interquartile range; of a column whose quartiles are equal, as of a flag, its standard deviation."""
    return float(np.diff(np.quantile(values, [0.25, 0.75]))[0]) or float(values.std())


def _columns(transform: Transform, values: NDArray[np.float32], present: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """The columns of network values, of each the stars that have it: of one that is computed from others those that lack nothing."""
    free = transform.value_columns
    having = {name: present[:, free.index(name)] for name in dict.fromkeys(free) if name in transform.free}
    complete = present.all(axis=1)
    # A position that is given is the same for all stars here: what follows from it does not depend on latents.
    sky = (np.zeros(len(values)),) * 2 if transform.position == "condition" else ()
    columns = {name: column[having.get(name, complete)] for name, column in transform.inverse(values, *sky, smooth=True).items()}
    finite = {name: np.where(np.isfinite(column), column, 0.0) for name, column in columns.items()}
    return {name: column for name, column in finite.items() if len(column) and name not in transform.constant}


def errors_by_bits(network: Autoencoder | Flow, stars: Batch) -> list[list[float]]:
    """Of each latent of a value that stars share, what it is off with 0, 1, … bits, as `allocated_bits` takes it; of any other nothing."""
    few = Batch(*(part[:RATED_STARS] for part in stars))
    return network.errors_by_bits(few.values, few.condition) if isinstance(network, Flow) else [[]] * network.shape.latents


def allocated_bits(precisions: Sequence[float], bits: int, errors: Sequence[Sequence[float]] = ()) -> list[int]:
    """Bits of each latent, of a budget a star: each goes to the latent whose error is then the largest.

    The error is a quarter of a step over the precision, in IQRs: half of errors are smaller. So steps end up as nearly as whole bits allow in
    the ratio of the precisions, and a latent whose whole range is below its share has none: reverse water-filling (Cover and Thomas 2006,
    section 10.3.3), with log2(range / precision) as what a latent is worth.

    errors: of each latent its errors with 0, 1, … bits, 0 beyond, where they do not follow from the precision; empty where they do.

    >>> allocated_bits([0.01, 0.02, 4.0], 11), allocated_bits([0.01, 0.02, 8.0], 11, [[], [0.4, 0.1], []])
    ([6, 5, 0], [9, 2, 0])
    """
    table = 0.25 * 2.0 ** (1 - np.arange(MOST_BITS + 1)) / np.array(precisions)[:, None]
    for own, known in zip(table, errors, strict=False):
        if known:
            own[:] = np.pad(known, (0, MOST_BITS + 1 - len(known)))
    given = np.zeros(len(table), np.int64)
    for _ in range(bits):
        given[np.argmax(np.where(given < MOST_BITS, table[np.arange(len(table)), given], -np.inf))] += 1
    return [int(each) for each in given]


def reallocate(network: Autoencoder | Flow, stars: Batch, transform: Transform, group: Group) -> None:
    """Set the network's bits by its latents' precisions on validation stars, on every rank as on rank 0."""
    precisions, errors = latent_precisions(network, stars, transform), errors_by_bits(network, stars)
    given = allocated_bits(precisions, network.shape.bits, errors)
    network.bits.copy_(torch.tensor(given))
    group.broadcast([network.bits])
