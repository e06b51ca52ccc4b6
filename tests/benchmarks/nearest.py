"""How long an index of latents takes to make, what memory it holds, and how soon it has ten neighbours of ten stars. Prints a markdown table.

    python tests/benchmarks/nearest.py                        # 10 million stars: some five minutes, 4 GB
    python tests/benchmarks/nearest.py --stars 2000000
    python tests/benchmarks/nearest.py --run store/runs/dr2   # latents of this run, instead of a hardly trained model's

Stars are made of a run's latents: each is a star of the run, moved by normal noise of a tenth of a unit of distance and rounded to the latents'
steps again. In turn, each in a fresh process:

- gaiadask: `LatentIndex` (scipy's k-d tree), as `run.nearest` has it; source_ids are looked up, too.
- numpy: the distance to every star, one star after the other, from the same array in memory.
- scikit-learn: its KDTree, of leaves of 40 stars, as it has them by default.
- faiss: IndexFlatL2, a comparison with every star in blocks, on all cores (where faiss-cpu of the extra `benchmark` is installed).

All are exact: the largest difference of their distances is printed. Before, of the run's own stars: how far a star's nearest neighbour is,
and by how much the measured and the rebuilt columns of the two differ.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

# In the place of this folder, whose compression.py has the name of a module of Python 3.14 that libraries look for.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import Part, Timed, bound, cpu_seconds, interleaved, mock_config
from sklearn.neighbors import KDTree

from gaiadask.catalogue import iterate_partition
from gaiadask.cluster.here import Here
from gaiadask.nearest import LatentIndex, Points, latent_scales
from gaiadask.run import Run, open_run
from gaiadask.stages.engine import run_stages

NOISE = 0.1
"""By how much a copy of a star is moved, in units of distance."""
QUERIES = K = 10
STARS_OF_RUN = 50_000


@dataclass(frozen=True)
class Given:
    """What a contestant is given. folder: has base.npy, points of stars of a run, and steps.npy, the latents' steps."""

    folder: Path
    stars: int

    def points(self) -> NDArray[np.float32]:
        """The stars' points, shape (stars, latents), the same in each process."""
        base, steps = (np.load(self.folder / f"{name}.npy") for name in ("base", "steps"))
        random = np.random.default_rng(0)
        points = np.empty((self.stars, base.shape[1]), np.float32)
        for first in range(0, self.stars, 1_000_000):
            part = points[first : first + 1_000_000]
            moved = base[random.integers(0, len(base), len(part))] + NOISE * random.standard_normal(part.shape, dtype=np.float32)
            part[:] = np.rint(moved / steps) * steps
        return points

    @property
    def asked(self) -> NDArray[np.int64]:
        """Numbers of the stars whose neighbours are asked for."""
        return np.random.default_rng(1).integers(0, self.stars, QUERIES)


def gaiadask(given: Given, report: Path) -> Part:
    """The index as `run.nearest` has it."""
    points = given.points()
    parts = [Points(np.arange(len(points)), np.zeros((len(points), 1), np.int64), points)]
    built = _clocked(lambda: LatentIndex.of(parts, {}))
    index: LatentIndex = built.value
    parts.clear()
    return _answered(report, built.wall, lambda: _distances(index, given.asked))


def _distances(index: LatentIndex, asked: NDArray[np.int64]) -> NDArray[np.floating]:
    return index.nearest(index.points_of(asked), K)["distance"].to_numpy().reshape(-1, K)


def numpy(given: Given, report: Path) -> Part:
    """A comparison with every star."""
    points = given.points()

    def nearest(star: int) -> NDArray[np.floating]:
        away = points - points[star]
        squares = np.einsum("ij,ij->i", away, away)
        return np.sqrt(np.sort(np.partition(squares, K)[: K + 1]))[1:]

    return _answered(report, 0.0, lambda: np.stack([nearest(star) for star in given.asked]))


def scikit_learn(given: Given, report: Path) -> Part:
    """The k-d tree of scikit-learn."""
    points = given.points()
    built = _clocked(lambda: KDTree(points))
    return _answered(report, built.wall, lambda: built.value.query(points[given.asked], k=K + 1)[0][:, 1:])


def faiss(given: Given, report: Path) -> Part:
    """Comparisons with every star in blocks."""
    import faiss

    points = given.points()
    index = faiss.IndexFlatL2(points.shape[1])
    built = _clocked(lambda: index.add(points))
    return _answered(report, built.wall, lambda: np.sqrt(index.search(points[given.asked], K + 1)[0][:, 1:]))


@dataclass(frozen=True)
class _Clocked:
    value: Any
    wall: float


def _clocked(work: Callable[[], Any]) -> _Clocked:
    started = time.perf_counter()
    value = work()
    return _Clocked(value, time.perf_counter() - started)


def _answered(report: Path, built_s: float, ask: Callable[[], NDArray[np.floating]]) -> Part:
    """Time the question, and leave in `report` its distances, how long building took, and what memory the process holds."""
    held_gb = psutil.Process().memory_info().rss / 1e9
    cpu, started = cpu_seconds(), time.perf_counter()
    distances = ask()
    part = Part(QUERIES, time.perf_counter() - started, cpu_seconds() - cpu)
    np.savez(report, distances=distances, built_s=built_s, held_gb=held_gb)
    return part


def run_of_mock_stars(folder: Path) -> Run:
    """A run of mock stars with a value in every column, 8 latents of 12 bits, hardly trained."""
    sections: dict[str, Any] = {
        "selection": {"not_null": "seed25"}, "model": {"columns": "seed16", "hidden": [64, 64]},
        "training": {"rows_seen": 500_000, "validation_rows": 2_000}, "prior": {"kind": "none"},
    }  # fmt: skip
    config = mock_config(folder, STARS_OF_RUN, **sections)
    run_stages(config, ["ingest", "statistics", "train", "encode"], workers=Here())
    return open_run(f"{config.store}/runs/{config.name}")


def write_points(run: Run, folder: Path) -> None:
    """The points of some stars of the run, and the steps that its latents are rounded to."""
    scales = latent_scales(run.model)
    parts: list[NDArray[np.float32]] = []
    for partition in run.catalogue_record.partitions:
        parts += [Points.of(t, run.model).latents for t in iterate_partition(run.store, run.paths.latent, partition.tile)]
        if sum(map(len, parts)) >= 1_000_000:
            break
    np.save(folder / "base.npy", np.concatenate(parts))
    np.save(folder / "steps.npy", [code.scale / s for code, s in zip(run.model.card.codes, scales, strict=True) if np.isfinite(s)])


def meaning(run: Run) -> str:
    """What distances mean: how far stars and their nearest neighbours differ, beside stars that are drawn at random."""
    latents = run.latent().compute()
    chosen = latents.sample(300, random_state=0)
    found = run.nearest(chosen, k=1)
    catalogue = run.catalogue(["source_id", *run.model.transform.columns]).compute().set_index("source_id")
    # Position counts nothing: both are rebuilt at the first one's.
    by_id = latents.set_index("source_id", drop=False)
    own, near = by_id.loc[found.source_id], by_id.loc[found.neighbour]
    moved = near.assign(ra=own.ra.to_numpy(), dec=own.dec.to_numpy())
    names = [name for name in run.model.transform.columns if name not in ("ra", "dec")]
    iqr = catalogue[names].astype(float).quantile(0.75) - catalogue[names].astype(float).quantile(0.25)
    random = catalogue.loc[chosen.source_id.sample(len(found), random_state=1)]
    pairs = {
        "rebuilt": (run.decode(own), run.decode(moved)),
        "measured": (catalogue.loc[found.source_id], catalogue.loc[found.neighbour]),
        "measured, of stars at random": (catalogue.loc[found.source_id], random),
    }
    differences = []
    for name, (one, other) in pairs.items():
        away = (one[names].astype(float).to_numpy() - other[names].astype(float).to_numpy()) / iqr.to_numpy()
        differences.append(f"{name} {np.median(np.sqrt(np.nansum(away**2, axis=1))):.3f}")
    return (
        f"{len(latents):,} stars: the nearest one is at a distance of {found.distance.median():.3f}; columns differ, root of the sum of squares "
        f"in interquartile ranges, median of {len(found)} pairs: {'; '.join(differences)}\n"
    )


def shown(runs: Mapping[str, list[Timed]], folder: Path) -> str:
    """The table, and the largest difference between the contestants' distances."""
    lines = [
        "| | built in, s | memory held, GB | most above its start, GB | ten neighbours of ten stars, s | of CPU, s |",
        "|" + " --- |" * 6,
    ]
    reports = {name: np.load(folder / f"{name}.npz") for name in runs}
    for name, timed in runs.items():
        wall, cpu = (statistics.median(getattr(each, of) for each in timed) for of in ("wall_s", "cpu_s"))
        report, peak = reports[name], max(each.peak_mb for each in timed) / 1_000
        lines.append(f"| {name} | {report['built_s']:.1f} | {report['held_gb']:.2f} | {peak:.2f} | {wall:.3f} | {cpu:.3f} |")
    distances = [report["distances"] for report in reports.values()]
    off = max(float(np.abs(each - distances[0]).max()) for each in distances)
    return "\n".join([*lines, f"\nlargest difference of distances: {off:.1e}; median distance {np.median(distances[0]):.3f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stars", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--run", default="", help="address of a run whose latents the stars are made of")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gaiadask-nearest-") as scratch:
        folder = Path(scratch)
        run = open_run(options.run) if options.run else run_of_mock_stars(folder / "store")
        print(meaning(run))
        write_points(run, folder)
        given = Given(folder, options.stars)
        contestants = [gaiadask, numpy, scikit_learn, *([faiss] if importlib.util.find_spec("faiss") else [])]
        work = {each.__name__: bound(each, given, folder / f"{each.__name__}.npz") for each in contestants}
        print(f"{options.stars:,} stars, {os.cpu_count()} cores, one run of each in turn, {options.repeats} times\n")
        print(shown(interleaved(work, options.repeats), folder))


if __name__ == "__main__":
    main()
