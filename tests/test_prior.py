"""What new stars are drawn from: positions on the sky, densities, and the files they lie in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.stats import norm
from zuko.lazy import Flow

from gaiadask.config.sections import PriorConfig
from gaiadask.errors import ConfigurationError, DataError, KeyMismatchError, StoreError, TrainingError
from gaiadask.prior import Cone, Prior, PriorCard, SkyCounts, SkyDensity, load_prior, load_prior_cached, save_prior
from gaiadask.prior.artifact import FORMAT_VERSION
from gaiadask.prior.card import StarsUsed
from gaiadask.prior.density_fit import fit_density
from gaiadask.prior.flows import Density, Gaussianised
from gaiadask.prior.sky_density import FINEST_ORDER, STARS_A_PIXEL, _leaves
from gaiadask.prior.spline_flow import log_density, new_flow
from gaiadask.sky import centre, healpix, separation_deg, unit_vector
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths, Tile
from gaiadask.training.checkpoint import CheckpointFile

QUICK = PriorConfig(rows_seen=60_000, batch_rows=256, hidden=(32, 32), transforms=2, bins=6)


def sky(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A band and a cluster; faint stars, which are those of the south, lack something."""
    random = np.random.default_rng(seed)
    ra = np.where(random.random(n) < 0.3, 56.75 + 0.3 * random.standard_normal(n), random.uniform(0, 360, n))
    dec = np.where(np.abs(ra - 56.75) < 2, 24.1 + 0.3 * random.standard_normal(n), 25 * random.standard_normal(n)).clip(-90, 90)
    lacking = random.random(n) < np.where(dec < 0, 0.8, 0.1)
    return ra, dec, np.where(lacking, 0b110, 0)[:, None].astype(np.int64)


@pytest.fixture(scope="module")
def density() -> SkyDensity:
    ra, dec, mask = sky(60_000)
    half = slice(0, 30_000), slice(30_000, 60_000)
    return SkyDensity.fit(SkyCounts.merge(SkyCounts.of(ra[h], dec[h], mask[h]) for h in half))


# Sky density -------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_pixels_are_disjoint_hold_all_stars_and_are_no_finer_than_the_counts_support(density: SkyDensity) -> None:
    starts = density.pixel << (2 * (29 - density.order))
    stops = (density.pixel + 1) << (2 * (29 - density.order))
    assert (starts[1:] >= stops[:-1]).all()
    assert density.weight.sum() == pytest.approx(60_000)
    # Brothers were made because their parent held enough for four, but for those about stars where it is mostly empty.
    parents, total = np.unique(np.column_stack([density.order - 1, density.pixel >> 2]), axis=0, return_inverse=True)
    of_parent = np.bincount(total.ravel(), weights=density.weight)
    family = [(density.order == o + 1) & (density.pixel >> 2 == p) for o, p in parents]
    whole = [f.sum() == 4 and (density.weight[f] % 1 == 0).all() for f in family]
    assert sum(whole) > 100
    assert (of_parent[np.array(whole) & (parents[:, 0] >= 0)] >= STARS_A_PIXEL).all()
    assert density.order.max() >= 6 > density.order.min(), "fine in the cluster, coarse at the poles"


def test_drawn_positions_follow_the_counts_and_repeat_none(density: SkyDensity) -> None:
    ra, dec, _ = sky(60_000)
    new_ra, new_dec, _ = density.draw(60_000, np.random.default_rng(1))
    assert not set(zip(ra, dec, strict=True)) & set(zip(new_ra, new_dec, strict=True))
    assert len(np.unique(np.column_stack([new_ra, new_dec]), axis=0)) == 60_000
    ours, theirs = (np.bincount(healpix(a, d, 2), minlength=192) for a, d in ((ra, dec), (new_ra, new_dec)))
    # Each count has Poisson noise on one side only (the pixels' counts are the stars' own): 5 sigma over 192 pixels.
    assert (np.abs(ours - theirs) <= 5 * np.sqrt(ours + 1)).all()


def test_null_masks_are_as_frequent_as_around(density: SkyDensity) -> None:
    _, dec, mask = density.draw(40_000, np.random.default_rng(2))
    assert set(mask.ravel()) == {0, 0b110}
    for here, share in ((dec < -25, 0.8), (dec > 25, 0.1)):
        assert (mask[here] != 0).mean() == pytest.approx(share, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("cone", [Cone(56.75, 24.1, 0.5), Cone(200, 10, 20), Cone(57, 24, 0.01), Cone(359.9, 5, 3)])
def test_a_cone_is_drawn_as_the_whole_sky_is_there(density: SkyDensity, cone: Cone) -> None:
    ra, dec, _ = density.within_cone(cone).draw(20_000, np.random.default_rng(3))
    inside = cone.contains(ra, dec)
    assert inside.mean() > 0.5, "little is drawn in vain"
    assert separation_deg(ra, dec, cone.ra, cone.dec).max() < 3 * cone.radius + 0.1
    all_ra, all_dec, _ = density.draw(400_000, np.random.default_rng(4))
    there = cone.contains(all_ra, all_dec)
    if there.sum() > 2_000:
        medians = [np.median(d) for d in (dec[inside], all_dec[there])]
        assert medians[0] == pytest.approx(medians[1], abs=0.1 * cone.radius)


@pytest.mark.parametrize("order", [0, 3, 12])
def test_a_tile_holds_what_is_drawn_in_it(density: SkyDensity, order: int) -> None:
    tile = Tile(order, int(healpix([56.75], [24.1], order)[0]))
    ra, dec, _ = density.within_tile(tile).draw(5_000, np.random.default_rng(5))
    assert (healpix(ra, dec, order) == tile.pixel).all()


def test_where_there_is_no_star_none_is_drawn() -> None:
    ra, dec, mask = sky(3_000)
    north = dec > 40
    only = SkyDensity.fit(SkyCounts.of(ra[north], dec[north], mask[north]))
    with pytest.raises(DataError, match=r"the cone \(10, -60, 1\).*no train star near it"):
        only.within_cone(Cone(10, -60, 1))
    with pytest.raises(DataError, match=r"tile Norder=1/Npix=40"):
        only.within_tile(Tile(1, 40))
    few = np.random.default_rng(0)
    corner = SkyDensity.fit(SkyCounts.of(few.uniform(44.9, 45.1, 200), few.uniform(0.05, 0.15, 200), np.zeros((200, 1), np.int64)))
    with pytest.raises(DataError, match=r"tile Norder=1/Npix=40"):  # though the first pixel of a finer order has stars
        corner.within_tile(Tile(1, 40))
    with pytest.raises(DataError, match="no train star"):
        SkyDensity.fit(SkyCounts.of(ra[:0], dec[:0], mask[:0]))


FIELDS = {
    "a cluster": lambda r: (56.75 + r.normal(0, 0.5, 100), 24.1 + r.normal(0, 0.5, 100)),
    "a cluster on the corner of pixels": lambda r: (45 + r.normal(0, 0.3, 100), r.normal(0, 0.3, 100)),
    "a cluster and a star": lambda r: (np.r_[56.75 + r.normal(0, 0.5, 80), 90], np.r_[24.1 + r.normal(0, 0.5, 80), 24.0]),
    "ten stars": lambda r: (r.normal(200, 0.1, 10), r.normal(-40, 0.1, 10)),
    "one star": lambda r: (np.array([10.0]), np.array([20.0])),
    "one place": lambda r: (np.full(300, 10.0), np.full(300, 20.0)),
    "both poles": lambda r: (np.array([0.0, 180, 360])[np.arange(600) % 3], np.array([90.0, -90.0])[np.arange(600) % 2]),
    "a strip": lambda r: (r.uniform(0, 360, 600), r.uniform(-0.02, 0.02, 600)),
    "a meridian": lambda r: (np.full(600, 360.0), r.uniform(-90, 90, 600)),
}


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_no_star_is_spread_over_what_is_empty(field: str) -> None:
    """As far as nine times the distance at which a star's fourth neighbour is, and a few counted pixels, is no further than around."""
    ra, dec = FIELDS[field](np.random.default_rng(1))
    density = SkyDensity.fit(SkyCounts.of(ra, dec, np.zeros((len(ra), 1), np.int64)))
    assert density.weight.sum() == pytest.approx(len(ra))
    starts, stops = (n << (2 * (29 - density.order)) for n in (density.pixel, density.pixel + 1))
    assert (starts[1:] >= stops[:-1]).all()
    new_ra, new_dec, _ = density.draw(4_000, np.random.default_rng(2))
    tree = cKDTree(unit_vector(ra, dec))
    scale = np.quantile(tree.query(unit_vector(ra, dec), min(5, len(ra)))[0].reshape(len(ra), -1)[:, -1], 0.9)
    away = np.degrees(tree.query(unit_vector(new_ra, new_dec))[0])
    assert away.max() < np.degrees(9 * scale) + 0.3
    with pytest.raises(DataError, match="no train star near it"):
        density.within_cone(Cone(ra[0] + 90, dec[0] * 0 + 20, 2))


@pytest.mark.slow
@pytest.mark.parametrize("spread", [1.0, 0.5])
def test_what_a_large_catalogue_fills_is_drawn_from_as_a_whole(spread: float) -> None:
    """Of stars over the whole sky or half of it, dense and sparse: the leaves are as the counts alone make them."""
    random = np.random.default_rng(5)
    ra, dec = random.uniform(0, 360 * spread, 30_000), np.degrees(np.arcsin(random.uniform(-1, 1, 30_000) ** 3))
    pixels, stars = np.unique(healpix(ra, dec, FINEST_ORDER), return_counts=True)
    order, pixel, weight = _leaves(FINEST_ORDER, pixels, stars, STARS_A_PIXEL)
    density = SkyDensity.fit(SkyCounts.of(ra, dec, np.zeros((30_000, 1), np.int64)))
    assert np.array_equal(density.order, order)
    assert np.array_equal(density.pixel, pixel)
    assert np.array_equal(density.weight, weight)


@pytest.mark.parametrize("cone", [Cone(0, 91, 1), Cone(0, 0, 0), Cone(0, 0, 181), Cone(float("nan"), 0, 1)])
def test_what_is_no_cone_is_refused(cone: Cone) -> None:
    with pytest.raises(ConfigurationError, match="expected ra, dec in -90 to 90 and a radius"):
        cone.checked()


def test_centres_of_the_finest_pixels_lie_in_them() -> None:
    index = healpix(*(a[:500] for a in sky(500)[:2]))
    assert np.array_equal(healpix(*centre(index)), index)


# Densities -----------------------------------------------------------------------------------------------------------
def bananas(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three columns, the third nearly the sum of the others, bent and turned by a context of one number."""
    random = np.random.default_rng(seed)
    context = random.uniform(-1, 1, (n, 1)).astype(np.float32)
    a = random.standard_normal(n)
    b = 0.6 * (a**2 - 1) * context[:, 0] + 0.2 * random.standard_normal(n)
    return np.stack([3 + 10 * a, b, a + b + 1e-3 * random.gamma(2, 1, n)], axis=1).astype(np.float32), context


def test_a_context_of_rounding_alone_is_constant() -> None:
    """As positions all at the pole, whose x and y are 1e-16: a star a minute of arc from there is drawn as those there are."""
    x, context = bananas(600, 0)
    pole = np.column_stack([context, 1e-16 * np.random.default_rng(1).standard_normal((600, 2)), np.full(600, np.sqrt(3))])
    fit = fit_density((x, pole.astype(np.float32)), (x, pole.astype(np.float32)), QUICK.model_copy(update={"rows_seen": 2_000}), 0)
    beside = pole + np.array([0, 5e-4, 5e-4, 0])
    at, near = (fit.density.draw(places.astype(np.float32), np.random.default_rng(2)) for places in (pole, beside))
    assert np.abs(at - near).max() < 0.1 * x.std()


def test_the_rough_map_makes_normals_and_comes_back() -> None:
    x, _ = bananas(5_000, 0)
    x = np.column_stack([x, np.full(len(x), 2.5), np.round(x[:, 0])]).astype(np.float64)  # a constant, and repeated values
    rough = Gaussianised.fit(x)
    scores = rough.forward(x)
    assert np.abs(rough.inverse(scores) - x).max() < 1e-6 * x.std(0).max()
    quantiles = np.quantile(scores[:, :3], [0.05, 0.5, 0.95], axis=0)
    assert quantiles == pytest.approx(np.repeat(norm.ppf([0.05, 0.5, 0.95])[:, None], 3, axis=1), abs=0.02)
    assert np.abs(np.corrcoef(scores[:, :3].T) - np.eye(3)).max() < 0.1
    far = rough.inverse(np.full((1, 5), 20.0))
    assert np.isfinite(far).all()


@pytest.mark.slow
def test_a_density_learns_what_the_rough_map_cannot_and_is_the_same_from_its_arrays() -> None:
    train, validation = bananas(8_000, 1), bananas(2_000, 2)
    density, found = fit_density(train, validation, QUICK, seed=0)
    assert found.rows_seen >= QUICK.rows_seen
    assert found.validation_loss < found.course[0].validation_loss - 0.3
    again = Density.from_arrays(density.to_arrays(), QUICK)
    context = np.concatenate([np.full((4_000, 1), s, np.float32) for s in (-0.8, 0.8)])
    drawn = density.draw(context, np.random.default_rng(3))
    assert np.array_equal(again.draw(context, np.random.default_rng(3)), drawn)
    # The banana opens downwards for one context and upwards for the other: the correlation of b with a^2.
    bend = [np.corrcoef(((half[:, 0] - 3) / 10) ** 2, half[:, 1])[0, 1] for half in np.split(drawn, 2)]
    assert bend[0] < -0.7
    assert bend[1] > 0.7
    # The third column follows from the others to 1e-3 of its spread.
    assert np.abs(drawn[:, 2] - (drawn[:, 0] - 3) / 10 - drawn[:, 1]).mean() < 0.05


@pytest.mark.parametrize("order", [2, 8, 11])
def test_counts_are_those_of_the_whole_however_it_is_cut_and_in_any_order(order: int) -> None:
    """In tiles finer than the pixels several parts have the same pixel; in coarser ones none, and only these need no sorting."""
    random = np.random.default_rng(8)
    ra, dec, mask = random.uniform(40, 41, 20_000), random.uniform(-1, 1, 20_000), random.integers(0, 3, (20_000, 2))
    whole = SkyCounts.of(ra, dec, mask)
    tile = healpix(ra, dec, order)
    parts = [
        SkyCounts.of(ra[rows], dec[rows], mask[rows]) for rows in (tile == each for each in random.permutation(np.unique(tile)))
    ]
    parts.insert(1, SkyCounts.of(ra[:0], dec[:0], mask[:0]))
    merged = SkyCounts.merge([SkyCounts.merge(parts[::2]), SkyCounts.merge(parts[1::2])])
    for name, array in merged._asdict().items():
        np.testing.assert_array_equal(array, getattr(whole, name), err_msg=name)
        assert array.dtype == getattr(whole, name).dtype == (np.int64 if name == "mask" else np.int32), name


def test_counts_grow_with_pixels_and_masks_and_not_with_stars() -> None:
    random = np.random.default_rng(0)

    def counted(stars: int) -> SkyCounts:
        ra, dec = random.uniform(10, 12, stars), random.uniform(-1, 1, stars)
        return SkyCounts.of(ra, dec, random.integers(0, 30, (stars, 2)))

    few, many = counted(200_000), SkyCounts.merge([counted(200_000), counted(400_000)])
    assert few.stars.sum() == few.mask_stars.sum() == 200_000
    assert many.stars.sum() == many.mask_stars.sum() == 600_000
    assert len(many.pixel) == len(np.unique(many.pixel)) <= 1.02 * len(few.pixel)
    rows = np.column_stack([many.mask_pixel, many.mask])
    assert len(rows) == len(np.unique(rows, axis=0)) <= 900 * len(np.unique(many.mask_pixel))
    assert len(np.unique(many.mask_pixel)) < len(many.pixel) / 10


SHAPES = pytest.mark.parametrize(
    ("features", "context", "hidden"),
    [(5, 3, (32, 32)), (5, 3, (7, 32, 3)), (5, 0, (32, 32)), (5, 2, (16,)), (1, 2, (32,)), (1, 0, (32,))],
)


def crooked_flow(features: int, context: int, hidden: tuple[int, ...]) -> Flow:
    """A flow that is far from the identity, with which it starts and of which any inverse is right."""
    torch.manual_seed(0)
    flow = new_flow(features, context, QUICK.model_copy(update={"hidden": hidden}))
    with torch.inference_mode():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow


@SHAPES
def test_densities_and_their_gradients_are_zukos(features: int, context: int, hidden: tuple[int, ...]) -> None:
    flow = crooked_flow(features, context, hidden)
    x, given = 3 * torch.randn(400, features), torch.randn(400, context) if context else None
    found, gradients = [], []
    for density in (flow(given).log_prob(x), log_density(flow, x, given)):
        flow.zero_grad()
        density.mean().backward()
        found.append(density.detach())
        gradients.append([parameter.grad.clone() for parameter in flow.parameters() if parameter.grad is not None])
    assert x.abs().max() > 6, "some lie beyond the splines"
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


@SHAPES
def test_what_is_drawn_is_what_the_flow_makes_of_the_noise(features: int, context: int, hidden: tuple[int, ...]) -> None:
    flow = crooked_flow(features, context, hidden)
    rough = Gaussianised.fit(np.random.default_rng(0).standard_normal((500, features)))
    given = np.random.default_rng(1).standard_normal((300, context))
    drawn = Density(rough, np.zeros(context), np.ones(context), flow).draw(given, np.random.default_rng(2))
    noise = np.random.default_rng(2).standard_normal((300, features), dtype=np.float32)
    with torch.inference_mode():
        zuko = flow(torch.from_numpy(given.astype(np.float32)) if context else None).transform.inv(torch.from_numpy(noise))
    assert np.abs(drawn - rough.inverse(zuko.numpy())).max() < 1e-4
    assert np.abs(drawn - rough.inverse(noise)).mean() > 1e-2


def test_the_same_seed_gives_the_same_density_and_a_lone_column_without_context_works() -> None:
    x, context = (np.random.default_rng(4).gamma(2, 1, (3_000, 1)).astype(np.float32), np.empty((3_000, 0), np.float32))
    short = QUICK.model_copy(update={"rows_seen": 3_000})
    one, other = (fit_density((x, context), (x[:500], context[:500]), short, seed=5)[0].to_arrays() for _ in range(2))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    drawn = Density.from_arrays(one, short).draw(context, np.random.default_rng(0))
    assert np.quantile(drawn, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(x, [0.1, 0.5, 0.9]), rel=0.15)


@pytest.mark.slow
def test_a_budget_in_seconds_ends_too_and_threads_are_put_back() -> None:
    threads = torch.get_num_threads()
    train = bananas(2_000, 6)
    long = QUICK.model_copy(update={"rows_seen": 10**9, "max_seconds": 0.5})
    _, found = fit_density(train, train, long, seed=0)
    assert found.rows_seen < 10**8
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_a_fit_that_was_killed_goes_on_and_comes_to_the_same(tmp_path: Path) -> None:
    train, validation = bananas(4_000, 6), bananas(1_000, 7)
    file = CheckpointFile(Store(str(tmp_path)), "a/checkpoint.safetensors", "k")
    whole, found = fit_density(train, validation, QUICK, seed=0)

    def killed(share: float) -> None:
        if share > 0.55:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_density(train, validation, QUICK, seed=0, report=killed, checkpoint=file)
    shares: list[float] = []
    again, after = fit_density(train, validation, QUICK, seed=0, report=shares.append, checkpoint=file)
    assert 0.45 < min(shares) <= 0.55
    assert [step.rows_seen for step in after.course] == [step.rows_seen for step in found.course]
    ours, theirs = whole.to_arrays(), again.to_arrays()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    # Of one that was finished nothing is left to do; another key's is not looked at.
    shares.clear()
    assert fit_density(train, validation, QUICK, seed=0, report=shares.append, checkpoint=file).card.course == after.course
    assert not shares
    other = CheckpointFile(file.store, file.name, "other")
    fit_density(train, validation, QUICK.model_copy(update={"rows_seen": 2_000}), seed=0, report=shares.append, checkpoint=other)
    assert shares[0] == 0


def test_the_weights_of_the_lowest_validation_loss_are_kept() -> None:
    """Steps so long that the first weights stay the best: the flow is the identity, whatever came later."""
    train, validation = bananas(2_000, 8), bananas(500, 9)
    density, found = fit_density(train, validation, QUICK.model_copy(update={"learning_rate": 3.0, "rows_seen": 8_000}), seed=0)
    losses = [step.validation_loss for step in found.course]
    assert found.validation_loss == min(losses) < losses[-1]
    with torch.inference_mode():
        x = torch.from_numpy(density.rough.forward(validation[0]).astype(np.float32))
        loss = -density.flow(density.scaled_context(validation[1])).log_prob(x).mean().item()
    assert loss == pytest.approx(min(losses), rel=1e-5)


def test_a_loss_that_is_not_finite_is_told() -> None:
    train = bananas(2_000, 7)
    spoiled = (train[0].copy(), train[1])
    spoiled[0][3, 1] = np.nan
    with pytest.raises(TrainingError, match=r"the prior's loss is not finite"):
        fit_density(train, spoiled, QUICK, seed=0)


# Files ---------------------------------------------------------------------------------------------------------------
@pytest.fixture
def saved(tmp_path: Path, density: SkyDensity) -> tuple[Store, RunPaths]:
    store, run = Store(str(tmp_path)), RunPaths("a")
    train = bananas(2_000, 8)
    latent, fit = fit_density(train, train, QUICK.model_copy(update={"rows_seen": 2_000}), seed=0)
    card = PriorCard(
        format_version=FORMAT_VERSION,
        key="k",
        model_key="m",
        prior=QUICK,
        stars=StarsUsed(counted=60_000, train=2_000, validation=2_000),
        pixels=len(density.pixel),
        varying=(1,),
        densities={"latent": fit},
        limits={"parallax": (-1.5, 700.0)},
    )
    masses = {"a_g_val": np.array([[-np.inf, 1.0], [1.0, 2.0], [0.0, 1.5]])}
    save_prior(store, run, Prior(density, {"latent": latent}, masses, card))
    return store, run


def test_what_is_read_is_what_was_written(saved: tuple[Store, RunPaths], density: SkyDensity) -> None:
    prior = load_prior(*saved)
    assert (prior.key, prior.model_key, prior.card.varying, prior.limits) == ("k", "m", (1,), {"parallax": (-1.5, 700.0)})
    assert {name: array.tolist() for name, array in prior.masses.items()} == {"a_g_val": [[-np.inf, 1.0], [1.0, 2.0], [0.0, 1.5]]}
    drawn = [p.draw(100, np.random.default_rng(0)) for p in (density, prior.sky)]
    assert all(np.array_equal(a, b) for a, b in zip(*drawn, strict=True))
    assert prior.card.densities["latent"].features == 3
    assert load_prior_cached(*saved, "k").card == prior.card
    assert load_prior_cached(*saved, "k") is load_prior_cached(*saved, "k")
    with pytest.raises(KeyMismatchError, match="made anew meanwhile"):
        load_prior_cached(*saved, "other")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda store, run: store.write_bytes(run.prior_weights, b"x"), "is not the file that card.json was written for"),
        (lambda store, run: store.write_json(run.prior_card, {"format_version": 99}), "format_version 99, expected 2"),
        (lambda store, run: store.write_json(run.prior_card, store.read_json(run.prior_card) | {"varying": None}), "do not describe"),
        (lambda store, run: store.remove(run.prior_card), "no such file"),
    ],
)  # fmt: skip
def test_files_that_do_not_belong_together_are_refused(saved: tuple[Store, RunPaths], spoil, words: str) -> None:
    spoil(*saved)
    with pytest.raises(StoreError, match=words):
        load_prior(*saved)


def test_a_density_is_fitted_on_the_device_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    move = Density.to
    monkeypatch.setattr(Density, "to", lambda density, device: (asked.append(device), move(density, device))[1])
    x, context = np.random.default_rng(0).normal(size=(200, 2)), np.empty((200, 0))
    short = QUICK.model_copy(update={"rows_seen": 1_000})
    fitted = fit_density((x, context), (x, context), short, seed=0, device=torch.device("cpu", 0)).density
    assert asked == [torch.device("cpu", 0)]
    assert np.isfinite(fitted.draw(context, np.random.default_rng(1))).all()
