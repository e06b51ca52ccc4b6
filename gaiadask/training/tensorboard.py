"""Training curves as TensorBoard reads them, beside metrics.jsonl, where `training.tensorboard` asks for them.

tensorboard --logdir <store>/runs
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gaiadask.errors import ConfigurationError
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

_TERMS = ("loss", "reconstruction", "kl")
_SCALARS = ("learning_rate", "kl_weight", "active_units")


class Board:
    """Event files of one run's training; the step is rows seen."""

    def __init__(self, store: Store, run: RunPaths, resumed_from_rows: int) -> None:
        """Raises ConfigurationError where the extra `tensorboard` is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigurationError(
                f"training.tensorboard is on, but tensorboard cannot be imported ({error}): pip install 'gaiadask[tensorboard]'"
            ) from error
        folder = store.path(run.tensorboard) if store.is_local else store.uri_of(run.tensorboard)
        # Readers forget what an interrupted attempt wrote beyond the checkpoint that this one goes on from.
        self._writer = SummaryWriter(folder, purge_step=resumed_from_rows or None)

    def progress(self, rows_seen: int, loss: float | None, rows_per_s: float) -> None:
        """A moment between validations."""
        if loss is not None:
            self._writer.add_scalar("running/loss", loss, rows_seen)
        self._writer.add_scalar("running/rows_per_s", rows_per_s, rows_seen)

    def validated(self, record: Mapping[str, Any]) -> None:
        """One record of metrics.jsonl: training and validation in one chart, the median error of each value, KL a latent."""
        step = record["rows_seen"]
        for term in _TERMS:
            for part in ("train", "validation"):
                if (value := record[f"{part}_{term}"]) is not None:
                    self._writer.add_scalar(f"{term}/{part}", value, step)
        for name in _SCALARS:
            self._writer.add_scalar(f"training/{name}", record[name], step)
        for name, error in record["median_error"].items():
            self._writer.add_scalar(f"median_error/{name}", error, step)
        for number, latent in enumerate(record["latents"]):
            self._writer.add_scalar(f"latent_kl/z{number:02d}", latent["kl"], step)
        self._writer.flush()
