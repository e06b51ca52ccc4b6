"""A trained model as one object that encodes and decodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from gaiadask.inputs.transform import Transform
from gaiadask.model.networks import Autoencoder

if TYPE_CHECKING:
    from gaiadask.inputs.transform import NetworkInputs


BATCH_ROWS = 16_384


@dataclass(frozen=True)
class StarModel:
    """A network, the transform that feeds it, and the card that describes both."""

    network: Autoencoder
    transform: Transform
    card: dict[str, Any]

    @property
    def key(self) -> str:
        """Of the model: what it was made from."""
        return str(self.card["key"])

    @property
    def latents(self) -> int:
        return self.network.latents

    @torch.inference_mode()
    def encode(self, inputs: NetworkInputs) -> NDArray[np.float32]:
        """The posterior's means of stars, shape (n, latents): the same star always gives the same latents."""
        self.network.eval()
        z = np.empty((len(inputs.values), self.latents), np.float32)
        for rows in _slices(len(z)):
            batch = (self._tensor(part[rows]) for part in (inputs.values, inputs.condition))
            z[rows] = self.network.encode(*batch)[0].cpu().numpy()
        return z

    @torch.inference_mode()
    def decode(self, z: NDArray, condition: NDArray) -> NDArray[np.float32]:
        """Rebuilt values, shape (n, n_values), in the transform's unit.

        z: shape (n, latents). condition: shape (n, n_conditions), as the transform's forward gives it.
        """
        self.network.eval()
        values = np.empty((len(z), self.network.n_values), np.float32)
        for rows in _slices(len(z)):
            batch = (self._tensor(part[rows].astype(np.float32, copy=False)) for part in (z, condition))
            values[rows] = self.network.decode(*batch).cpu().numpy()
        return values

    def _tensor(self, array: NDArray) -> torch.Tensor:
        return torch.from_numpy(np.array(array, order="C")).to(next(self.network.parameters()).device)


def _slices(n: int) -> list[slice]:
    return [slice(start, min(start + BATCH_ROWS, n)) for start in range(0, n, BATCH_ROWS)]
