"""A trained model as one object that encodes and decodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from gaiadask.html import html_table
from gaiadask.inputs.nulls import Masks
from gaiadask.inputs.transform import NetworkInputs, Transform
from gaiadask.model.card import ModelCard, latent_names
from gaiadask.model.device import Batches, Copies, Finish
from gaiadask.model.device_transform import DeviceTransform, RawStars
from gaiadask.model.flow import Flow
from gaiadask.model.networks import Autoencoder

# Where a GPU has no memory for so many stars at once, other work has left it none.
LEAST_ROWS = 1_024
# Within the outermost step of any latent.
_INSIDE = 1 - 1e-6


class Encoded(NamedTuple):
    """n stars as latents, shape (n, latents), and null masks, shape (n, words)."""

    latents: NDArray[np.float32]
    masks: Masks


@dataclass(frozen=True, repr=False)
class StarModel:
    """A network, the transform that makes its inputs, and the card that describes both.

    It computes on the device where its network lies (`load_model`), from numpy arrays to numpy arrays.

    Attributes:
        network: the autoencoder, or the flow.
        transform: from stars to the network's values and back.
        card: what the model was made from, and how well it does.

    >>> from gaiadask.run import open_run
    >>> model = open_run("store/runs/dr2").model
    >>> model.latents, model.transform.position
    (6, 'condition')
    """

    network: Autoencoder | Flow
    transform: Transform
    card: ModelCard

    def __repr__(self) -> str:
        card, roles = self.card, Counter(column.role for column in self.card.columns)
        columns = ", ".join(f"{count} {role}" for role, count in roles.items())
        width = f"{self.bits} bits" if self.bits else f"{self.latent_bytes} bytes"
        return (
            f"StarModel {card.model.preset!r}: {len(card.columns)} columns ({columns}) as {self.latents} latents of {width} "
            f"a star; {card.training.parameters:,} parameters, trained on {card.training.rows_seen:,} stars shown; key {self.key}"
        )

    def _repr_html_(self) -> str:
        """The model in a notebook: what it is, and its columns."""
        rows = [(column.name, column.unit, column.role) for column in self.card.columns]
        return html_table(repr(self), ("column", "unit", "role"), rows)

    @property
    def key(self) -> str:
        """Hash of what the model was made from."""
        return self.card.key

    @property
    def latents(self) -> int:
        """How many numbers a star is compressed to."""
        return self.network.shape.latents

    @property
    def latent_columns(self) -> list[str]:
        """Names of the columns of latents: of all, but those that have no bits."""
        return [code.name for code in self.card.codes if code.bits] if self.card.codes else latent_names(self.latents)

    @property
    def bits(self) -> int:
        """Bits of a star's latents, where they are rounded; else 0."""
        return sum(code.bits for code in self.card.codes)

    @property
    def latent_bytes(self) -> int:
        """Of a star's latents, uncompressed, as they are stored."""
        return sum(c.field.type.bit_width // 8 for c in self.card.codes if c.bits) if self.card.codes else 4 * self.latents

    def latents_of(self, table: pa.Table, where: str) -> NDArray[np.float32]:
        """The latents of a table with the `latent_columns`, as files have them or as `encode` gives them, shape (n, latents).

        Raises:
            DataError: beginning with `where`, for numbers that the latents do not have.
        """
        if not self.card.codes:
            return np.stack([table[name].to_numpy() for name in self.latent_columns], axis=1)
        z = np.zeros((len(table), self.latents), np.float32)
        for i, code in enumerate(self.card.codes):
            if code.bits:
                z[:, i] = code.latents(table[code.name], where)
        return z

    def continuous(self, z: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        """Latents as a density can be fitted to them, shape as z: where they are rounded, each is drawn evenly from its step (Theis et al.
        2016, arXiv:1511.01844, section 3.1), and has no bounds any more."""
        if not self.card.codes:
            return z
        drawn = z + (random.random(z.shape) - 0.5) * np.array([code.scale for code in self.card.codes])
        return (self.network.squash * np.arctanh(np.clip(drawn, -_INSIDE, _INSIDE))).astype(np.float32)

    def as_continuous(self, z: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The middles of the latents' steps, as `continuous` has them, and the logarithms of the steps' widths there, both of z's shape: a
        density at the middle times the widths is about the probability of these very latents. Of latents that are not rounded: as they
        are, and 0."""
        if not self.card.codes:
            return z, np.zeros(z.shape)
        middle = np.clip(z, -_INSIDE, _INSIDE).astype(np.float64)
        steps = self.network.squash / (1 - middle**2) * np.array([code.scale for code in self.card.codes])
        return (self.network.squash * np.arctanh(middle)).astype(np.float32), np.log(steps)

    def latents_from(self, continuous: NDArray[np.floating]) -> NDArray[np.float32]:
        """The inverse of `continuous`: latents, rounded where they are."""
        if not self.card.codes:
            return continuous.astype(np.float32)
        z = np.tanh(continuous / self.network.squash)
        return np.stack([code.rounded(column) for code, column in zip(self.card.codes, z.T, strict=True)], axis=1)

    def latents_without_star(self, stars: int, random: np.random.Generator) -> NDArray[np.float32]:
        """Draws from what the loss takes latents to follow: a unit normal, or, where an autoencoder's are rounded, evenly between -1 and 1.

        A flow's are not rounded: it is a density, and rounding would take away what latents of few bits do not say.
        """
        if isinstance(self.network, Flow):
            scores = random.standard_normal((stars, self.latents))
            return (np.tanh(scores / self.network.squash) if self.card.codes else scores).astype(np.float32)
        if not self.card.codes:
            return self.latents_from(random.standard_normal((stars, self.latents)))
        return self.latents_from(self.network.squash * np.arctanh(random.uniform(-_INSIDE, _INSIDE, (stars, self.latents))))

    def encode_table(self, table: pa.Table) -> Encoded:
        """Latents of a table's stars.

        Args:
            table: ra, dec and the transform's columns, as `Transform.forward` and `Transform.null_bits` take them.

        Raises:
            DataError: for a missing column, and for NaN and infinities.
            OutOfMemoryError: where the device has too little memory.
        """
        masks = self.transform.null_bits(table)
        if self.device_transform is None:
            return Encoded(self.encode(self.transform.forward(table)), masks)
        on_device, copies = self.device_transform, self._copies

        def latents(rows: slice) -> Tensor:
            stars = on_device.raw(table.slice(rows.start, rows.stop - rows.start), masks[rows], pinned=copies.is_gpu)
            inputs = on_device.forward(RawStars(*copies.to_device(*stars)))
            return self.network.mean(inputs.values, inputs.condition)

        return Encoded(self._computed(len(masks), self.latents, latents), masks)

    def encode(self, inputs: NetworkInputs, bits: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Latents of stars: the posterior's means, so that the same star always has the same latents; rounded, where they are stored so.

        Args:
            inputs: n stars, as `Transform.forward` gives them.
            bits: of each latent, where latents that are rounded are to have others than the model's own.

        Returns:
            Shape (n, latents).
        """

        given = None if bits is None else torch.tensor(bits, device=self.device)

        def latents(rows: slice) -> Tensor:
            values, condition = self._on_device(inputs.values[rows], inputs.condition[rows])
            return self.network.mean(values, condition, given)

        return self._computed(len(inputs.values), self.latents, latents)

    def decode(self, z: NDArray, condition: NDArray) -> NDArray[np.float32]:
        """Rebuilt network values of latents.

        Args:
            z: shape (n, latents).
            condition: shape (n, n_conditions), as `Transform.condition` gives it.

        Returns:
            Shape (n, n_values), as `inverse` takes it.
        """

        def values(rows: slice) -> Tensor:
            given = (part[rows].astype(np.float32, copy=False) for part in (z, condition))
            return self.network.decode(*self._on_device(*given))

        return self._computed(len(z), self.network.shape.n_values, values)

    def inverse(
        self,
        values: NDArray[np.floating],
        ra: ArrayLike | None = None,
        dec: ArrayLike | None = None,
        known: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> dict[str, NDArray[np.float64]]:
        """Physical columns of network values, as `Transform.inverse` gives them; what follows from others is computed on the host."""
        if self.device_transform is None:
            return self.transform.inverse(values, ra, dec, known)
        on_device, free = self.device_transform, np.empty((len(self.device_transform.columns), len(values)))

        def columns(rows: slice) -> Finish:
            ready = self._copies.to_host(on_device.inverse(*self._on_device(values[rows])))
            return lambda: free.__setitem__((slice(None), rows), ready())

        with torch.inference_mode():
            self._batches.run(len(values), columns)
        named = dict(zip(on_device.columns, free, strict=True))
        return self.transform.completed(self.transform.rounded(named), values[:, self.transform.vector_start :], ra, dec, known)

    @cached_property
    def device_transform(self) -> DeviceTransform | None:
        """The transform where the network lies; None on a processor, where numpy's is as fast."""
        return DeviceTransform.of(self.transform, self.device) if self.device.type == "cuda" else None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    @cached_property
    def _batches(self) -> Batches:
        rows = self.network.rows_at_once
        return Batches(rows, least=rows if self.network.depends_on_batch else min(rows, LEAST_ROWS))

    @cached_property
    def _copies(self) -> Copies:
        return Copies(self.device)

    def _on_device(self, *arrays: NDArray) -> tuple[Tensor, ...]:
        return self._copies.to_device(*(self._copies.pinned(array) for array in arrays))

    @torch.inference_mode()
    def _computed(self, stars: int, width: int, compute: Callable[[slice], Tensor]) -> NDArray[np.float32]:
        """`compute` of each batch's rows, shape (rows, width), as one array."""
        self.network.eval()
        out = np.empty((stars, width), np.float32)

        def start(rows: slice) -> Finish:
            ready = self._copies.to_host(compute(rows))
            return lambda: out.__setitem__(rows, ready())

        self._batches.run(stars, start)
        return out
