"""Event files hold what metrics.jsonl holds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gaiadask.config.model import ModelConfig
from gaiadask.config.sections import TrainingConfig
from gaiadask.errors import ConfigurationError
from gaiadask.inputs.statistics import Statistics
from gaiadask.release.dr2 import DR2
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training.assignment import Assignment
from gaiadask.training.codes import Codec
from gaiadask.training.loop import train
from gaiadask.training.metrics import read_metrics
from gaiadask.training.tensorboard import Board
from tests.made_up import VALIDATION, fitted, made_up_stars, write_partitions


@pytest.mark.slow
def test_curves_are_those_of_metrics_jsonl(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    store, stars = Store(str(tmp_path)), made_up_stars(4_000, seed=1)
    names, transform = write_partitions(store, stars), fitted(stars)
    training = TrainingConfig(rows_seen=8_192, validate_every_rows=2_048, batch_rows=512, tensorboard=True)
    assignment = Assignment(
        store=store.uri, run="board", partitions=tuple(names), validation=VALIDATION, transform=transform.to_json(),
        codec=Codec.fit(transform, Statistics.from_table(stars, DR2).train, errors=False).to_json(),
        model=ModelConfig(latents=3, hidden=(16,), error_share=0), training=training, key="k",
    )  # fmt: skip
    train(assignment, lambda event: None)
    run = RunPaths("board")
    events = EventAccumulator(store.path(run.tensorboard))
    events.Reload()
    records = read_metrics(store, run)
    found = {event.step: event.value for event in events.Scalars("loss/validation")}
    assert found == pytest.approx({r.rows_seen: r.validation_loss for r in records})
    assert {f"latent_kl/z{i:02d}" for i in range(3)} <= set(events.Tags()["scalars"])


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigurationError, match=r"gaiadask\[tensorboard\]"):
        Board(Store(str(tmp_path)), RunPaths("x"), 0)
