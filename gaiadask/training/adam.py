"""Adam, as torch computes it, without torch's class: the first use of that one imports torch's compiler, a third of a rank's start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

_EPSILON = 1e-8


class Adam:
    """Changes parameters by their gradients (Kingma and Ba 2015).

    Args:
        parameters: of a network, on the device that they stay on.
        betas: how much of the first and the second moment stays from step to step; by default its authors' values.

    Attributes:
        moments: of each parameter that had a gradient, by the parameter's number: "step", "exp_avg" and "exp_avg_sq", torch's names.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.parameters, self.betas = list(parameters), betas
        self.moments: dict[int, dict[str, Tensor]] = {}

    def zero_gradients(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Change the parameters that have a gradient."""
        changed = {number: p for number, p in enumerate(self.parameters) if p.grad is not None}
        for number, parameter in changed.items():
            if number not in self.moments:
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                self.moments[number] = {"step": step} | {n: torch.zeros_like(parameter) for n in ("exp_avg", "exp_avg_sq")}
        moments = [self.moments[number] for number in changed]
        adam(
            list(changed.values()), [p.grad for p in changed.values() if p.grad is not None],
            [m["exp_avg"] for m in moments], [m["exp_avg_sq"] for m in moments], [], [m["step"] for m in moments],
            fused=True, amsgrad=False, beta1=self.betas[0], beta2=self.betas[1], lr=learning_rate, weight_decay=0.0, eps=_EPSILON,
            maximize=False,
        )  # fmt: skip

    def load(self, moments: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Take over moments, of any device. Raises ValueError where they are of other parameters."""
        loaded: dict[int, dict[str, Tensor]] = {}
        for number, named in moments.items():
            if number >= len(self.parameters) or any(
                named[name].shape != self.parameters[number].shape for name in ("exp_avg", "exp_avg_sq")
            ):
                raise ValueError(f"its moments of parameter {number} are of another shape")
            device = self.parameters[number].device
            loaded[number] = {name: tensor.to(device, copy=True) for name, tensor in named.items()}
        self.moments = loaded
