"""Training curves for TensorBoard, beside metrics.jsonl, where `training.tensorboard` asks for them.

tensorboard --logdir <store>/runs
"""

from __future__ import annotations

from gaiadask.errors import ConfigurationError
from gaiadask.model.card import MetricsRecord, latent_names
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

_TERMS = ("loss", "reconstruction", "kl")
_SCALARS = ("learning_rate", "kl_weight", "active_units")


class Board:
    """Event files of one run's training; the step is rows seen."""

    def __init__(self, store: Store, run: RunPaths, resumed_from_rows: int) -> None:
        """Open the run's event files. Raises ConfigurationError where the extra `tensorboard` is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigurationError(
                f"training.tensorboard is on, but tensorboard cannot be imported ({error}): pip install 'gaiadask[tensorboard]'"
            ) from error
        folder = store.path(run.tensorboard) if store.is_local else store.uri_of(run.tensorboard)
        # Makes readers drop what an interrupted attempt wrote beyond the checkpoint that this one resumes from.
        self._writer = SummaryWriter(folder, purge_step=resumed_from_rows or None)

    def progress(self, rows_seen: int, loss: float | None, rows_per_s: float) -> None:
        """Add a point between validations."""
        if loss is not None:
            self._writer.add_scalar("running/loss", loss, rows_seen)
        self._writer.add_scalar("running/rows_per_s", rows_per_s, rows_seen)

    def validated(self, record: MetricsRecord) -> None:
        """Add a validation: training and validation in one chart, the median error of each value, the KL of each latent."""
        scalars: dict[str, float | None] = {}
        for term in _TERMS:
            for part in ("train", "validation"):
                scalars[f"{term}/{part}"] = getattr(record, f"{part}_{term}")
        scalars |= {f"training/{name}": getattr(record, name) for name in _SCALARS}
        scalars |= {f"median_error/{name}": error for name, error in record.median_error.items()}
        names = latent_names(len(record.latents))
        scalars |= {f"latent_kl/{name}": latent.kl for name, latent in zip(names, record.latents, strict=True)}
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, record.rows_seen)
        self._writer.flush()
