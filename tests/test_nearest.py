"""Neighbours by latents: those of brute force, among stars with the same nulls; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from small_run import copied

from gaiadask.config.sections import Config
from gaiadask.errors import ConfigurationError, DataError, KeyMismatchError, MissingStageError, OutOfMemoryError
from gaiadask.nearest import LatentIndex, Points, latent_scales
from gaiadask.run import Run, open_run
from gaiadask.stages.encode import EncodeResult
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def latents(run: Run) -> pd.DataFrame:
    return run.latent().compute(scheduler="synchronous").reset_index(drop=True)


def scaled(run: Run, frame: pd.DataFrame) -> NDArray[np.float64]:
    return frame[run.model.latent_columns].to_numpy(np.float64) / latent_scales(run.model)


def brute_force(run: Run, latents: pd.DataFrame, star: pd.DataFrame, k: int) -> NDArray[np.float64]:
    """Distances of the k nearest other stars with the same nulls."""
    others = latents[(latents.null_mask == star.null_mask.iloc[0]) & (latents.source_id != star.source_id.iloc[0])]
    return np.sort(np.linalg.norm(scaled(run, others) - scaled(run, star), axis=1))[:k]


@pytest.mark.slow
def test_neighbours_are_those_of_brute_force_among_stars_with_the_same_nulls(run: Run, latents: pd.DataFrame) -> None:
    patterns = latents.groupby("null_mask").head(2)  # stars of every null mask, rare ones among them
    found = run.nearest(patterns.source_id, k=5)
    assert list(found.columns) == ["source_id", "rank", "neighbour", "distance"]
    assert list(dict.fromkeys(found.source_id)) == list(patterns.source_id[patterns.source_id.isin(found.source_id)])
    mask_of = dict(zip(latents.source_id, latents.null_mask, strict=True))
    assert len(set(patterns.null_mask)) > 2
    for star in patterns.source_id:
        own, row = found[found.source_id == star], latents[latents.source_id == star]
        expected = brute_force(run, latents, row, 5)
        assert own["rank"].tolist() == list(range(1, len(expected) + 1)), "fewer where fewer stars have the same nulls"
        np.testing.assert_allclose(own.distance.to_numpy(np.float64), expected, rtol=1e-4, atol=1e-5)
        assert star not in set(own.neighbour) and {mask_of[other] for other in own.neighbour} <= {row.null_mask.iloc[0]}


def test_a_frame_of_latents_gives_what_its_source_ids_give(run: Run, latents: pd.DataFrame) -> None:
    some = latents.iloc[[5, 700, 3]]
    by_id = run.nearest(some.source_id.to_list(), k=4)
    for frame in (some, pa.Table.from_pandas(some, preserve_index=False), {name: some[name].to_numpy() for name in some}):
        pd.testing.assert_frame_equal(run.nearest(frame, k=4), by_id)
    # As files have them, and a star that is not in the catalogue: its own twin is its neighbour.
    other = some.assign(source_id=[1, 2, 3])
    twins = run.nearest(other, k=1)
    assert twins.source_id.tolist() == [1, 2, 3] and twins.neighbour.tolist() == some.source_id.tolist()
    assert twins.distance.to_numpy(np.float64) == pytest.approx(0, abs=1e-5)
    assert run.nearest(run.latent().partitions[[0]], k=1).source_id.is_unique
    assert len(run.nearest(some.iloc[:0], k=1)) == 0


def test_ties_are_told_in_the_order_of_source_id_and_a_star_is_not_its_own_neighbour() -> None:
    ids, point = np.array([9, 4, 7, 2]), np.zeros((4, 2), np.float32)
    index = LatentIndex.of([Points(ids, np.zeros((4, 1), np.int64), point)], {})
    found = index.nearest(index.points_of(np.array([7])), 3)
    assert found["neighbour"].to_pylist() == [2, 4, 9] and found["distance"].to_pylist() == [0, 0, 0]


def test_a_unit_of_distance_is_a_latents_precision(run: Run, latents: pd.DataFrame) -> None:
    precisions = [code.precision for code in run.model.card.codes]
    assert latent_scales(run.model) == pytest.approx(precisions)
    moved = latents.iloc[[0]].assign(z00=latents.z00.iloc[0] + 0.01, source_id=1)
    assert run.nearest(moved, k=1).distance.iloc[0] <= 0.01 / precisions[0] * (1 + 1e-4)


@pytest.mark.parametrize(
    ("stars", "message"),
    [
        ([-3], r"source_id -3 is out of range"),
        ([1.5], r"expected source_ids, whole numbers of 64 bits, or a frame of latents; found values of type double"),
        (["a"], r"expected source_ids, whole numbers"),
        ([7, 8], r"of source_id 7 \(2 of 2 stars asked for\): the run's catalogue of [\d,]+ stars does not have it"),
        ({"source_id": [1]}, r"cannot find neighbours"),
        ({"z00": [1.0]}, r"the frame has no source_id"),
    ],
)
def test_what_is_no_star_of_the_run_is_refused(run: Run, stars: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        run.nearest(stars)


def test_more_neighbours_than_stars_and_numbers_that_are_none(run: Run, latents: pd.DataFrame) -> None:
    star, stars = [latents.source_id.iloc[0]], len(latents)
    with pytest.raises(DataError, match=rf"k={stars}: the catalogue has {stars:,} stars, so that a star has at most {stars - 1:,}"):
        run.nearest(star, k=stars)
    assert len(run.nearest(star, k=stars - 1)) < stars
    for k in (0, -1, 1.5, "a"):
        with pytest.raises(ConfigurationError, match="k="):
            run.nearest(star, k=k)  # type: ignore[arg-type]


def test_latents_of_another_model_and_latents_made_anew_are_refused(run: Run, small_run: Config, tmp_path: Path) -> None:
    frame = run.latent().get_partition(0).compute()
    frame.attrs["gaiadask.weights"] = "0" * 64
    with pytest.raises(
        KeyMismatchError, match="cannot find neighbours: the latents were encoded by the model with the weights 0000"
    ):
        run.nearest(frame)
    config = copied(small_run, tmp_path / "store")
    other = open_run(f"{config.store}/runs/small")
    assert len(other.nearest(frame.source_id.iloc[:1], k=1)) == 1
    manifest = Manifest(Store(config.store), RunPaths("small"))
    entry = manifest.require("encode")
    manifest.write("encode", {**entry.inputs, "more": 1}, EncodeResult.model_validate(entry.result), 1.0)
    with pytest.raises(KeyMismatchError, match=r"the index of run 'small' .*: its latents were made anew: open the run again"):
        other.nearest(frame.source_id.iloc[:1], k=1)
    manifest.remove("encode")
    with pytest.raises(MissingStageError, match="encode"):
        other.nearest(frame.source_id.iloc[:1], k=1)


def test_an_index_that_does_not_fit_is_refused(small_run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    free = psutil.virtual_memory()._replace(available=100_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(OutOfMemoryError, match=r"an index of [\d,]+ stars takes .* of memory, .*: this machine has 100.0 kB free"):
        open_run(f"{small_run.store}/runs/small").nearest([1])
