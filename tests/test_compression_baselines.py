"""What the codec is compared with: every baseline keeps its bound, what does not is found, and lengths of codes are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from baselines_of_compression import Baseline, Parquet, PerStar, worst_of
from code_lengths import Stream, length
from other_compressors import Arrays, OneBound
from small_run import fetched, small_config

from gaiadask.codec.bounds import tolerances
from gaiadask.release.dr2 import DR2

STEPS = Arrays(
    lambda values, error: np.array([error, *np.rint(values / (2 * error))]).tobytes(),
    lambda blob, count: np.frombuffer(blob)[1:] * 2 * np.frombuffer(blob)[0],
)
"""An array as whole steps of twice the error."""


@pytest.fixture(scope="module")
def stars() -> pa.Table:
    """2,000 mock stars with nulls, by source_id."""
    return fetched(small_config(Path("nowhere"), archive={"mock_stars": 2_000}, selection={"columns": "seed25"}))


@pytest.mark.slow
@pytest.mark.parametrize("kappa", [0.01, 1.0])
@pytest.mark.parametrize(
    "recompute, pixel, split", [(False, False, False), (True, False, False), (True, True, False), (True, True, True)]
)
def test_grids_keep_every_bound(stars: pa.Table, kappa: float, recompute: bool, pixel: bool, split: bool) -> None:
    bounds = tolerances(DR2, stars.column_names, kappa, {})
    _keeps(PerStar(DR2, bounds, recompute=recompute, pixel=pixel, split=split), stars, kappa)


def test_one_bound_for_all_keeps_every_bound(stars: pa.Table) -> None:
    _keeps(OneBound(DR2, tolerances(DR2, stars.column_names, 0.1, {}), STEPS), stars, 0.1)


@pytest.mark.parametrize("split", [False, True])
def test_parquet_keeps_every_bit(stars: pa.Table, split: bool) -> None:
    _keeps(Parquet(split), stars, 0.0)


def _keeps(baseline: Baseline, stars: pa.Table, kappa: float) -> None:
    rebuilt = baseline.decompress(baseline.compress(stars), stars.num_rows)
    found = worst_of(stars, rebuilt, tolerances(DR2, stars.column_names, kappa, {}), DR2)
    assert (found.beyond, found.worst <= 1, found.worst > 0.9) == (0, True, kappa > 0), found


def test_what_is_not_near_enough_is_counted(stars: pa.Table) -> None:
    bounds = tolerances(DR2, stars.column_names, 0.1, {})
    parallax = stars["parallax"].to_numpy().copy()
    known = np.flatnonzero(np.isfinite(parallax))
    parallax[known[:3]] += 0.11 * stars["parallax_error"].to_numpy()[known[:3]]
    moved = stars.set_column(stars.column_names.index("parallax"), "parallax", pa.array(parallax, from_pandas=True))
    found = worst_of(stars, moved, bounds, DR2)
    assert (found.beyond, found.column) == (3, "parallax") and found.worst == pytest.approx(1.1)
    assert worst_of(stars, moved, tolerances(DR2, stars.column_names, 0.0, {}), DR2).beyond == 3


def test_code_lengths_are_those_of_the_distributions() -> None:
    random = np.random.default_rng(0)
    flips, wide = random.random(4_000) < 0.1, random.integers(0, 4_096, 4_000)
    assert length(Stream("flips", flips.astype(np.int64))) / 4_000 == pytest.approx(0.469, abs=0.02)
    assert length(Stream("wide", wide)) / 4_000 == pytest.approx(12, abs=0.15)
    scale = np.exp2(random.integers(4, 12, 4_000))
    numbers = np.rint(random.normal(0, scale)).astype(np.int64)
    known = length(Stream("numbers", numbers, scale)) / 4_000
    assert known == pytest.approx(float(np.log2(scale * np.sqrt(2 * np.pi * np.e)).mean()), abs=0.15)
    assert length(Stream("numbers", numbers)) / 4_000 > known + 0.3
