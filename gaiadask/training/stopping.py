"""The best weights so far, and when validations that bring nothing end training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass
class EarlyStopping:
    """Keeps the weights of the lowest validation loss and counts the validations since.

    patience: how many validations in a row may bring no lower loss.
    """

    patience: int
    loss: float = math.inf
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    without_gain: int = 0

    def validated(self, loss: float, network: nn.Module, *, counts: bool = True) -> bool:
        """Record a validation; returns whether its loss is the lowest so far.

        counts: whether patience counts it, if it is not.
        """
        if loss < self.loss:
            self.loss, self.without_gain = loss, 0
            self.weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            return True
        self.without_gain += counts
        return False

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.without_gain >= self.patience
