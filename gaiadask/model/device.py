"""Which device networks run on: the one place that turns `[cluster] device` into torch's."""

from __future__ import annotations

import torch

from gaiadask.errors import ConfigurationError


def torch_device(choice: str = "auto") -> torch.device:
    """The device that `choice` names.

    Args:
        choice: "auto" (a GPU where this machine has one, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigurationError: where torch has no such device on this machine.
    """
    if choice == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=choice).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"device {choice!r} is not there ({str(error).splitlines()[0]}): set [cluster] device to 'auto', 'cpu' or 'cuda'"
        ) from error
