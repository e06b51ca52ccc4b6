"""What is minimised and at which rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_up import FREE, fitted, made_up_stars

from gaiadask.config.model import ModelConfig
from gaiadask.config.sections import TrainingConfig
from gaiadask.errors import DataError
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.model.networks import Posterior
from gaiadask.release.dr2 import DR2
from gaiadask.training.codes import Batch
from gaiadask.training.objective import Objective
from gaiadask.training.schedule import FLOW_CYCLE, RISE_SHARE, kl_weight, learning_rate_factor

CPU = torch.device("cpu")
TABLE = made_up_stars(3_000)
SHARES = np.linspace(0, 1, 201)


def test_the_learning_rate_rises_once_and_falls_to_nothing() -> None:
    factors = [learning_rate_factor(share, TrainingConfig()) for share in SHARES]
    peak = int(np.argmax(factors))
    assert max(factors) == 1
    assert 0 < peak < 40
    assert np.all(np.diff(factors[: peak + 1]) > 0)
    assert np.all(np.diff(factors[peak:]) < 0)
    assert factors[-1] == pytest.approx(0, abs=1e-12)


def test_step_and_exponential_rates_meet_at_the_end_of_each_step() -> None:
    step, even, constant = (
        TrainingConfig(schedule=schedule, decay_factor=0.5, decay_every=0.25) for schedule in ("step", "exponential", "constant")
    )
    assert [learning_rate_factor(s, step) for s in (0, 0.2, 0.25, 0.49, 0.5, 0.8)] == [1, 1, 0.5, 0.5, 0.25, 0.125]
    assert learning_rate_factor(0.125, even) == pytest.approx(0.5**0.5)
    for share in (0, 0.25, 0.5, 0.75):
        assert learning_rate_factor(share, even) == pytest.approx(learning_rate_factor(share, step))
    assert {learning_rate_factor(share, constant) for share in SHARES} == {1.0}
    assert np.all(np.diff([learning_rate_factor(share, even) for share in SHARES]) < 0)


def test_a_flow_has_a_cycle_of_its_own() -> None:
    assert FLOW_CYCLE.factor(0.0) == 1e-2
    assert FLOW_CYCLE.factor(0.02) == 0.02 / RISE_SHARE + 1e-2
    assert FLOW_CYCLE.factor(0.3) == 0.5 * (1 + np.cos(np.pi * (0.3 - RISE_SHARE) / (1 - RISE_SHARE))) + 1e-4
    assert FLOW_CYCLE.factor(1.0) == FLOW_CYCLE.factor(2.0) == 1e-4


def test_kl_weight_warms_up_by_rows_seen() -> None:
    assert [kl_weight(rows, 1_000, 0.2, 0.5) for rows in (0, 100, 200, 1_000)] == [0.0, 0.25, 0.5, 0.5]
    assert kl_weight(0, 1_000, 0.0, 0.5) == 0.5


def test_weights_are_one_over_the_iqr_unless_named() -> None:
    transform = Transform.fit(tuple(FREE), Statistics.from_table(TABLE, DR2).train, DR2, "condition", "min-max", derive=False)
    config = ModelConfig(
        preset="autoencoder", columns=tuple(FREE), loss="weighted-mse", scaling="min-max", column_weights={"pmra": 4.0}
    )
    objective = Objective.of(config, transform, CPU)
    values = transform.forward(TABLE).values
    spread = np.subtract(*np.quantile(values, [0.75, 0.25], axis=0))
    expected = np.where([name == "pmra" for name in FREE], 0.5, spread)
    np.testing.assert_allclose(objective.scale.numpy(), expected, rtol=0.1)
    stars = Batch(torch.zeros(2, 9), torch.ones(2, 9, dtype=torch.bool), torch.zeros(2, 3), torch.zeros(2, 0))
    loss = objective(stars, torch.ones(2, 9), Posterior(torch.zeros(2, 1), None), 1.0)
    assert loss.total.item() == pytest.approx(np.mean(objective.scale.numpy() ** -2.0), rel=1e-5)


def test_a_column_without_width_has_no_weight() -> None:
    table = made_up_stars(3_000)
    flat = np.where(np.arange(3_000) < 2_000, 1.0, table["pmra"].to_numpy())
    table = table.set_column(table.column_names.index("pmra"), "pmra", [flat])
    transform = Transform.fit(tuple(FREE), Statistics.from_table(table, DR2).train, DR2, "condition", "min-max", derive=False)
    config = ModelConfig(preset="autoencoder", loss="weighted-mse", scaling="min-max")
    with pytest.raises(DataError, match=r"\['pmra'\] have quartiles that are equal"):
        Objective.of(config, transform, CPU)


def test_each_star_has_its_own_scale() -> None:
    config, transform = ModelConfig(loss="gaussian", noise_scale=0.1, error_share=0.5), fitted(TABLE)
    objective = Objective.of(config, transform, CPU)
    sigma = torch.zeros(2, 9)
    sigma[1] = 2.0
    stars = Batch(torch.zeros(2, 9), torch.ones(2, 9, dtype=torch.bool), torch.zeros(2, 3), sigma)
    off = [
        objective(stars.rows(torch.tensor([i])), torch.full((1, 9), 0.3), Posterior(torch.zeros(1, 1), None), 1.0) for i in (0, 1)
    ]
    normal = [torch.distributions.Normal(0.0, s).log_prob(torch.tensor(0.3)) for s in (0.1, 1.0)]
    for loss, each in zip(off, normal, strict=True):
        torch.testing.assert_close(loss.total, -9 * each)
    assert objective.unit == pytest.approx(0.01)
