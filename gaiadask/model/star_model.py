"""A trained model as one object that encodes and decodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gaiadask.inputs.transform import NetworkInputs, Transform
from gaiadask.model.card import ModelCard
from gaiadask.model.networks import Autoencoder

# Stars that the network computes at once: the activations of its layers then fit into a processor's caches or a GPU's memory.
BATCH_ROWS = 16_384


@dataclass(frozen=True)
class StarModel:
    """A network, the transform that makes its inputs, and the card that describes both.

    It computes on the device where its network lies (`load_model`), from numpy arrays to numpy arrays.

    Attributes:
        network: the autoencoder.
        transform: from stars to the network's values and back.
        card: what the model was made from, and how well it does.

    >>> from gaiadask.run import open_run
    >>> model = open_run("store/runs/dr2").model
    >>> model.latents, model.transform.position
    (6, 'condition')
    """

    network: Autoencoder
    transform: Transform
    card: ModelCard

    @property
    def key(self) -> str:
        """Hash of what the model was made from."""
        return self.card.key

    @property
    def latents(self) -> int:
        """How many numbers a star is compressed to."""
        return self.network.shape.latents

    @torch.inference_mode()
    def encode(self, inputs: NetworkInputs) -> NDArray[np.float32]:
        """Latents of stars: the posterior's means, so that the same star always has the same latents.

        Args:
            inputs: n stars, as `Transform.forward` gives them.

        Returns:
            Shape (n, latents).
        """
        self.network.eval()
        z = np.empty((len(inputs.values), self.latents), np.float32)
        for rows in _slices(len(z)):
            batch = (self._tensor(part[rows]) for part in (inputs.values, inputs.condition))
            z[rows] = self.network.encode(*batch).mean.cpu().numpy()
        return z

    @torch.inference_mode()
    def decode(self, z: NDArray, condition: NDArray) -> NDArray[np.float32]:
        """Rebuilt network values of latents.

        Args:
            z: shape (n, latents).
            condition: shape (n, n_conditions), as `Transform.condition` gives it.

        Returns:
            Shape (n, n_values), as `Transform.inverse` takes it.
        """
        self.network.eval()
        values = np.empty((len(z), self.network.shape.n_values), np.float32)
        for rows in _slices(len(z)):
            batch = (self._tensor(part[rows].astype(np.float32, copy=False)) for part in (z, condition))
            values[rows] = self.network.decode(*batch).cpu().numpy()
        return values

    def _tensor(self, array: NDArray) -> torch.Tensor:
        return torch.from_numpy(np.array(array, order="C")).to(next(self.network.parameters()).device)


def _slices(n: int) -> list[slice]:
    return [slice(start, min(start + BATCH_ROWS, n)) for start in range(0, n, BATCH_ROWS)]
