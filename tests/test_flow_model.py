"""The flow, a VAE whose decoder undoes its encoder: exactness, nulls, rounding, densities, order, training, and a run with it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hidden_values import coverages
from made_up import fitted, made_up_stars
from small_run import copied, fetched, make_run, small_config
from together import together
from torch import Tensor

from gaiadask.config.model import ModelConfig
from gaiadask.config.sections import Config, TrainingConfig
from gaiadask.config.toml import parse_config
from gaiadask.errors import ConfigurationError
from gaiadask.model.files import new_network
from gaiadask.model.flow import SQUASH, Flow, FlowShape
from gaiadask.model.losses import flow_elbo, normal_entropy
from gaiadask.prior.flow_fit import FlowDensity
from gaiadask.run import Run, open_run
from gaiadask.split import Part, part_of
from gaiadask.training.batches import Share
from gaiadask.training.codes import Batch
from gaiadask.training.group import Group, OneRank
from gaiadask.training.objective import validate
from gaiadask.training.step import new_learner, step

GROUPS = ((4,), (5, 6))
"""Null groups: value 4, and 5 with 6; the condition is one number and their bits."""


def flow(bits: int = 0, seed: int = 0) -> Flow:
    """Seven values, of which 1 follows nearly from 0; with weights that are far from its start's."""
    torch.manual_seed(seed)
    network = Flow(FlowShape(7, 3, (24, 21), GROUPS, bits))
    values, _ = stars(2_000)
    network.start_linear(values, 0.003)
    with torch.no_grad():
        network.last.weight.mul_(40)
        network.last.bias.normal_(0, 0.5)
    return network


def stars(rows: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Values, 0 where null, and conditions."""
    random = torch.Generator().manual_seed(seed)
    values, condition = torch.randn(rows, 7, generator=random), torch.randn(rows, 3, generator=random)
    values[:, 1] = 0.8 * values[:, 0] + 0.02 * values[:, 1]
    condition[:, 1:] = (torch.rand(rows, 2, generator=random) < 0.3).float()
    for bit, group in enumerate(GROUPS, start=1):
        values[:, list(group)] *= 1 - condition[:, bit : bit + 1]
    return values, condition


def present(condition: Tensor) -> Tensor:
    there = torch.ones(len(condition), 7, dtype=torch.bool)
    for bit, group in enumerate(GROUPS, start=1):
        there[:, list(group)] = condition[:, bit : bit + 1] == 0
    return there


# Exactness -----------------------------------------------------------------------------------------------------------
def test_the_decoder_undoes_the_encoder() -> None:
    network, (values, condition) = flow(), stars(500)
    latents = network.mean(values, condition)
    rebuilt = network.decode(latents, condition)
    assert (rebuilt - values).abs()[present(condition)].max() < 1e-4
    assert latents.std() > 0.5 and (latents == 0).equal(~present(condition)), "null values have latents of 0, others do not"


def test_values_in_the_tails_come_back() -> None:
    network, (values, condition) = flow(), stars(50)
    far = values * 4
    rebuilt = network.decode(network.mean(far, condition), condition)
    assert ((rebuilt - far).abs() <= 1e-3 * far.abs() + 1e-3)[present(condition)].all()


@pytest.mark.parametrize("bits", [30, 70])
def test_an_error_of_rounding_is_not_passed_on(bits: int) -> None:
    """The score of each value, given what the decoder knows of those before it, is within half a step of its latent."""
    network, (values, condition) = flow(bits), stars(500)
    latents = network.mean(values, condition)
    rebuilt = network.decode(latents, condition).masked_fill(~present(condition), 0.0)
    steps = torch.exp2(1 - network.bits.float())
    assert ((latents / steps + 0.5) % 1 < 1e-5).all() and (latents.abs() < 1).all()
    for value in range(7):
        mixed = rebuilt.clone()
        mixed[:, value] = values[:, value]
        score = torch.tanh(network._scores(mixed, condition)[:, value] / SQUASH)
        off = (score - latents[:, value]).abs()[present(condition)[:, value]]
        inside = off[score[present(condition)[:, value]].abs() < 1 - steps[value] / 2]
        assert inside.max() <= steps[value] / 2 + 1e-4


def test_fewer_bits_are_a_larger_error_and_none_are_the_median() -> None:
    network, (values, condition) = flow(98), stars(2_000)
    errors = []
    for each in (4, 8, 14):
        bits = torch.full((7,), each)
        network.bits.copy_(bits)
        rebuilt = network.decode(network.mean(values, condition), condition)
        errors.append(float((rebuilt - values).abs()[present(condition)].median()))
    assert errors[0] > 8 * errors[1] > 8 * 32 * errors[2]
    none = network.mean(values, condition, torch.zeros(7, dtype=torch.long))
    assert (none == 0).all()
    assert network.latent_bits == [14] * 7
    medians = network.decode(none, condition).masked_fill(~present(condition), 0.0)
    scores = network._scores(medians, condition)
    assert scores[present(condition)].abs().max() < 1e-3


def test_a_walk_and_a_pass_know_the_same() -> None:
    network, (values, condition) = flow(), stars(200)
    x, seen = network._in_order(values), list[Tensor]()

    def remember(place: int, spline: object) -> Tensor:
        seen.append(spline.score(x[place]))  # type: ignore[attr-defined]
        return x[place]

    with torch.no_grad():
        network._walk(condition, remember)
        torch.testing.assert_close(torch.stack(seen), network._spline(x, condition).score(x), rtol=1e-4, atol=1e-4)


# Densities -----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_densities_are_the_slopes_of_scores_and_integrate_to_one() -> None:
    network, (values, condition) = flow(), stars(20)
    known = values.clone().requires_grad_()
    x = network._in_order(known)
    scores = network._by_number(network._spline(x, condition).score(x))
    for value in range(7):
        (slope,) = torch.autograd.grad(scores[:, value].sum(), known, retain_graph=True)
        expected = slope[:, value].log() - 0.5 * scores[:, value] ** 2 - 0.5 * math.log(2 * math.pi)
        torch.testing.assert_close(network.log_densities(values, condition)[:, value], expected, rtol=1e-4, atol=1e-3)
    value, grid = int(network.order[3]), torch.linspace(-40, 40, 400_001)
    row = values[:1].repeat(len(grid), 1)
    row[:, value] = grid
    with torch.no_grad():
        density = network.log_densities(row, condition[:1].expand(len(grid), -1))[:, value].exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=2e-3)


def test_what_follows_comes_last_and_what_may_be_null_after_the_rest() -> None:
    network = flow()
    order = network.order.tolist()
    assert sorted(order) == list(range(7)) and set(order[-3:]) == {4, 5, 6} and order[3] in (0, 1)


def test_a_value_depends_on_those_before_it_alone_and_not_on_whether_it_is_null() -> None:
    network, (values, condition) = flow(), stars(30)
    places = torch.argsort(network.order).tolist()
    known, given = values.clone().requires_grad_(), condition.clone().requires_grad_()
    spline = network._spline(network._in_order(known), given)
    for value in range(7):
        of_value, of_condition = torch.autograd.grad(
            (spline.middle + spline.shift + spline.log_width)[places[value]].sum(), (known, given), retain_graph=True
        )
        earlier = [other for other in range(7) if places[other] < places[value]]
        later = [other for other in range(7) if other not in earlier]
        assert (of_value[:, later] == 0).all() and (not earlier or (of_value[:, earlier] != 0).any(0).all())
        for bit, group in enumerate(GROUPS, start=1):
            after_all = all(places[other] < places[value] for other in group)
            assert (of_condition[:, bit] != 0).any() == after_all
        assert (of_condition[:, 0] != 0).any()


def test_the_evidence_bound_is_the_density_of_noisy_values() -> None:
    densities, there = torch.randn(6, 3), torch.rand(6, 3) < 0.7
    loss = flow_elbo(densities, there, normal_entropy(torch.full((1, 1), 0.01)))
    assert loss.total.item() == pytest.approx(-(densities * there).sum().item() / 6, rel=1e-5)
    assert (loss.reconstruction + loss.kl).item() == pytest.approx(loss.total.item(), rel=1e-5)
    one_value = 0.5 * math.log(2 * math.pi * math.e) + math.log(0.01)
    assert loss.reconstruction.item() == pytest.approx(one_value * there.sum().item() / 6, rel=1e-5)


# Training ------------------------------------------------------------------------------------------------------------
TABLE = made_up_stars(3_000, nulls=0.1)
TRANSFORM = fitted(TABLE)
MODEL = ModelConfig(preset="flow", hidden=(32, 32), error_share=0.0)
ROWS, STEPS = 300, 60
TRAINING = TrainingConfig(rows_seen=ROWS * STEPS, batch_rows=ROWS, learning_rate=0.01, gradient_norm=5.0)


def train_together(group: Group) -> tuple[list[float], list[Tensor], float]:
    """Steps on batches that ranks share; losses, weights, and the mean error of validation in the end."""
    torch.set_num_threads(1)
    inputs = TRANSFORM.forward(TABLE)
    parts = (torch.from_numpy(part) for part in (inputs.values, inputs.present, inputs.condition))
    whole = Batch(*parts, torch.empty(len(inputs.values), 0))
    learner = new_learner(TRANSFORM, MODEL, TRAINING, torch.device("cpu"), bits=80)
    learner.network.start_linear(whole.values, MODEL.noise_scale)
    random, losses = torch.Generator().manual_seed(2), []
    for number in range(STEPS):
        batch = torch.randperm(len(whole), generator=random)[:ROWS]
        places = torch.arange(group.rank, ROWS, group.world_size)
        loss = step(learner, Share(whole.rows(batch[places]), places), number * ROWS, group)
        losses.append(float(group.all_sum(loss.total)))
    rating = validate(learner.network, whole, learner.objective, 1.0, group)
    return losses, [p.detach() for p in learner.network.parameters()], float(np.mean(rating.median_error))


@pytest.mark.slow
def test_a_flow_learns_and_ranks_learn_the_same() -> None:
    losses, weights, error = train_together(OneRank())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5 and 0 < error < 0.02
    for other_losses, other_weights, other_error in together(2, train_together):
        assert other_losses == pytest.approx(losses, rel=1e-3, abs=1e-3)
        assert other_error == pytest.approx(error, rel=0.05)
        for one, other in zip(weights, other_weights, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


# Configuration -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"loss": "gaussian"}, "loss: not an option of preset 'flow'"),
        ({"free_bits": 0.5}, "free_bits: not an option"),
        ({"latents": 4}, "latents = 4 does not go with preset 'flow'"),
        ({"position": "input"}, "cannot encode the position"),
        ({"preset": "vae", "latents": 0}, "latents = 0 goes with preset 'flow' alone"),
    ],
)
def test_what_a_flow_does_not_have_is_refused(model: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_config({"model": {"preset": "flow", **model}})


def test_a_budget_fits_the_values() -> None:
    assert parse_config({"model": {"preset": "flow"}}).latent.bits == 96
    assert parse_config({"model": {"preset": "flow", "columns": "seed25"}}).latent.bits == 192
    values = TRANSFORM.n_values
    for bits in (values - 1, 16 * values + 1):
        with pytest.raises(ConfigurationError, match=f"latent.bits = {bits}: expected {values} to {16 * values} bits a star"):
            new_network(TRANSFORM, MODEL, bits)
    assert new_network(TRANSFORM, MODEL, values).latent_bits == [1] * values  # type: ignore[comparison-overlap]


def test_null_groups_are_those_of_the_transform() -> None:
    network = new_network(TRANSFORM, MODEL)
    assert isinstance(network, Flow)
    table = made_up_stars(400, seed=9, nulls=0.3)
    inputs = TRANSFORM.forward(table)
    values, condition = torch.from_numpy(inputs.values), torch.from_numpy(inputs.condition)
    grouped = {value for group in network.shape.null_groups for value in group}
    absent = network._by_number(network._absent(condition))
    assert grouped and absent[:, sorted(grouped)].equal(~torch.from_numpy(inputs.present)[:, sorted(grouped)])
    assert (values[absent] == 0).all() and isinstance(table, pa.Table)


# New stars -----------------------------------------------------------------------------------------------------------
def test_what_is_to_know_of_nulls_begins_as_it_was_and_can_be_learned() -> None:
    network, (values, condition) = flow(bits=30), stars(500)
    knowing, there = network.knowing_nulls(), present(condition)
    assert (knowing.log_densities(values, condition) - network.log_densities(values, condition))[there].abs().max() < 1e-5
    scores = torch.randn(500, 7, generator=torch.Generator().manual_seed(2))
    latents = torch.tanh(scores / SQUASH)
    assert (knowing.decode(scores, condition) - network.decode(latents, condition))[there].abs().max() < 1e-3, "nothing is rounded"
    first = int(network.order[0])
    for one, changes in ((network, False), (knowing, True)):
        with torch.no_grad():
            one.layers[0].weight[:, 1:3] += 1.0
        before = one.log_densities(values, condition)[:, first]
        turned = condition.clone()
        turned[:, 1:] = 1 - turned[:, 1:]
        assert ((one.log_densities(values, turned)[:, first] - before).abs().max() > 1e-3) == changes


# A run -----------------------------------------------------------------------------------------------------------------
def _latents(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, conditions and null masks of some stars."""
    table = pa.Table.from_pandas(run.catalogue().get_partition(0).compute().head(2_000), preserve_index=False)
    encoded = run.model.encode_table(table)
    return encoded.latents, run.model.transform.condition(table, encoded.masks), encoded.masks


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_with_a_flow_loses_to_nothing_of_the_same_bits(small_run: Config, tmp_path: Path) -> None:
    """Stars with nulls, all stages up to the report; beside quantile codes and PCA in the curve that a run measures of itself."""
    copied(small_run, tmp_path / "store")
    model = {"preset": "flow", "latents": 0, "hidden": (48, 48), "noise_scale": 0.003}
    config = small_config(
        tmp_path / "store",
        name="flow",
        model=model,
        latent={"bits": 64},
        training={"rows_seen": 200_000},
        prior={"rows_seen": 100_000},
    )
    make_run(config, "statistics", "train", "encode", "prior", "evaluate", "report")
    run = open_run(f"{config.store}/runs/flow")
    latents = run.latent().compute()
    assert sum(code.bits for code in run.model.card.codes) == 64
    stars = (
        run.catalogue()
        .compute()
        .set_index("source_id")
        .loc[latents.index if latents.index.name == "source_id" else latents["source_id"]]
    )
    rebuilt = run.decode(run.latent()).compute().set_index("source_id").loc[stars.index]
    for name in ("phot_g_mean_flux", "radial_velocity", "teff_val", "parallax"):
        assert rebuilt[name].isna().equals(stars[name].isna()), name
        off = (rebuilt[name] - stars[name]).abs().median() / (stars[name].quantile(0.75) - stars[name].quantile(0.25))
        assert off < 0.02, name
    drawn = run.model.continuous(run.model.latents_without_star(4_000, np.random.default_rng(0)), np.random.default_rng(1))
    assert np.abs(drawn.mean(0)).max() < 0.1 and np.abs(drawn.std(0) - 1).max() < 0.15, "new stars are of a unit normal"
    new, known = run.sample(4_000, seed=1).compute(), "radial_velocity"
    for lacks in (True, False):
        ours, theirs = (np.log(table["phot_g_mean_flux"][table[known].isna() == lacks]) for table in (new, stars))
        assert abs(ours.median() - theirs.median()) < 0.25 * np.log(stars["phot_g_mean_flux"]).std(), (
            "only bright stars have velocities"
        )
    assert list(run.prior.card.densities) == ["flow"] and not run.prior.densities
    likely = run.prior.log_likelihood(run.model, *_latents(run))
    assert np.isfinite(likely).all()
    unchanged = replace(
        run.prior, flow=FlowDensity({n: p.numpy() for n, p in run.model.network.knowing_nulls().state_dict().items()})
    )
    z, condition, masks = _latents(run)
    scores, log_steps = run.model.as_continuous(z)
    lacking = run.model.network.lacking(torch.from_numpy(condition)).numpy()
    expected = np.where(lacking, 0, log_steps - scores.astype(float) ** 2 / 2 - np.log(2 * np.pi) / 2).sum(axis=1)
    np.testing.assert_allclose(unchanged.log_likelihood(run.model, z, condition, masks), expected, atol=1e-3)
    assert likely.mean() > expected.mean(), "it has learned something"
    curve = run.quality.curve
    assert curve is not None and curve.stored_bits == 64
    for number, point in enumerate(curve.codes["model"]):
        for other in ("quantiles", "pca"):
            assert point.error < 0.75 * curve.codes[other][number].error, (point.bits, other)
    test_stars = fetched(config)
    test_stars = test_stars.filter(pa.array(part_of(test_stars["source_id"].to_numpy()) == Part.TEST))
    for one in coverages(test_stars, run.model):
        if stars[one.column].isna().mean() > 0.05:
            assert one.within_1 > 0.5 and one.within_2 > 0.75, one
    imputed = run.decode(run.latent(), impute=True).compute().set_index("source_id").loc[stars.index]
    lacking = stars["teff_val"].isna()
    assert lacking.any() and imputed["teff_val"][lacking].between(stars["teff_val"].min(), stars["teff_val"].max()).all()
