"""How small, how exact and how fast the compressed catalogue is beside other ways to keep each value within its bound.

    python tests/benchmarks/compression_methods.py                             # 2 million mock stars of 25 columns, made first: an hour and a half
    python tests/benchmarks/compression_methods.py --stars 200000 --kappa 0.1 --methods ours B4s
    python tests/benchmarks/compression_methods.py --folder /data/bench        # keeps stars, models and results; goes on where it was stopped
    python tests/benchmarks/compression_methods.py --rows rows.parquet         # code length of real rows, instead (tests/code_lengths.py)

A bound of κ is κ of each star's own errors, and the tolerances of `gaiadask.codec.bounds` for what has none. Every contestant
compresses the partitions of the catalogue one by one, and makes each table anew; every value of that is compared with its own bound
(a bound of 0: with every bit). Bytes count ids, tables, models and metadata.

- B2: per star a grid of 2 κ σ and pcodec a column; B3: and nothing of what follows from other columns but what that misses; B4: and
  positions as offsets from the pixel in source_id; B4s: and source_id as pixel and running number.
- SZ3, zfp: one absolute error a column and partition, the largest that satisfies every star of it, after the transformation that makes
  the column smallest (errors in logarithms); what follows from others, ids and pixels as B4s.
- DeepSqueeze's scheme: an autoencoder's latents in whole numbers and the differences from its output, here on each star's grid, so that
  the bound holds; latents + corrections: the same of this package's VAE. Both do everything else as B4s.
- compression-safeguards: one column of a million rows.

CPU seconds are of one thread, without reading the catalogue; contestants run in turn, each in a fresh process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from baselines_of_compression import Baseline, Packer, Parquet, PerStar, Worst, worst_of
from code_lengths import real_rows
from contest import Part, bound, mock_catalogue, mock_config, run_once
from other_compressors import Arrays, Network, OneBound, of_sz3, of_zfp, sz3, zfp

from gaiadask import catalogue
from gaiadask.archive.chunks import regrouped
from gaiadask.catalogue import Partition
from gaiadask.cluster.here import Here
from gaiadask.codec.bounds import Tolerance, allowed, tolerances
from gaiadask.codec.chunk import CodedChunk, encode_chunk
from gaiadask.codec.columns import Originals, native
from gaiadask.codec.compressed import Compressed, chunk_rows, chunks_of
from gaiadask.codec.files import column_names, read_chunks, write_chunks
from gaiadask.codec.fit import fit_codec
from gaiadask.config.sections import CodecConfig
from gaiadask.ingest import read_catalogue_record
from gaiadask.model.source import ModelSource
from gaiadask.release.column import HEALPIX_29
from gaiadask.release.release import Release, release_named
from gaiadask.split import Part as SplitPart
from gaiadask.split import hash_bound
from gaiadask.stages.compress import gather_stars
from gaiadask.stages.engine import run_stages
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

KAPPAS = (0.01, 0.1, 0.5, 1.0)
OURS, SAFEGUARDS, COLUMN, COLUMN_ROWS = "ours", "compression-safeguards", "parallax", 1_000_000
LAYOUT, CHECKSUM_BYTES = "layout", 4
AIMS = {
    0.01: {"B2": "0.70"},
    0.1: {"B2": "0.68 (0.655)", "B3": "0.79 (0.765)", "B4": "0.87 (0.85)", "B4s": "0.91 (0.89)"},
    0.5: {"B2": "0.65 (0.63)", "B3": "0.75 (0.73)", "B4": "0.84 (0.825)", "B4s": "0.885 (0.87)"},
}
"""Share of each that ours should be at most, and what would be better still."""
MODELS = {
    "ae4": {"preset": "autoencoder", "latents": 4, "columns": "seed25"},
    "ae8": {"preset": "autoencoder", "latents": 8, "columns": "seed25"},
    "vae": {"preset": "vae", "latents": 16, "columns": "seed25"},
}


@dataclass(frozen=True)
class Bench:
    """A catalogue, its models, and where results go."""

    folder: Path

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "store"))

    @property
    def release(self) -> Release:
        return release_named("dr2")

    @cached_property
    def partitions(self) -> tuple[Partition, ...]:
        return read_catalogue_record(self.store).partitions

    @property
    def rows(self) -> int:
        return sum(partition.rows for partition in self.partitions)

    def bounds(self, kappa: float) -> dict[str, Tolerance]:
        return tolerances(self.release, read_catalogue_record(self.store).columns, kappa, {})

    def tables(self) -> Iterator[tuple[Partition, pa.Table]]:
        """The partitions, one at a time."""
        for partition in self.partitions:
            yield partition, catalogue.read_partition(self.store, paths.CATALOGUE, partition.tile)

    def model(self, name: str) -> ModelSource:
        run = RunPaths(name)
        return ModelSource.of(self.store, run, Manifest(self.store, run).require("train").key)

    def result(self, method: str, kappa: float) -> Path:
        return self.folder / "results" / f"{method.replace(' ', '_')}-{kappa:g}.json"

    def files(self, method: str, kappa: float) -> Path:
        return self.folder / "files" / f"{method.replace(' ', '_')}-{kappa:g}"


def prepared(folder: Path, stars: int, models: Sequence[str], rows_seen: int) -> Bench:
    """Make the catalogue and the models that are not there yet."""
    mock_catalogue(folder / "store", stars)
    for name in models:
        training = {"rows_seen": rows_seen, "threads": 1}
        config = mock_config(folder / "store", stars, model=MODELS[name], training=training, prior={"kind": "none"})
        run_stages(config.model_copy(update={"name": name}), ["statistics", "train"], workers=Here())
    return Bench(folder)


# Contestants ----------------------------------------------------------------------------------------------------------
class Contestant:
    """A baseline of one bound. A partition is a file, of chunks of the rows that ours has."""

    extra_bytes = 0
    """Of tables and models, in no partition's file."""

    def __init__(self, baseline: Baseline) -> None:
        self._baseline = baseline

    def compress(self, table: pa.Table, partition: Partition, path: Path) -> dict[str, int]:
        """Write a partition. Returns the bytes of each column, and of all else: four for the length of each string."""
        chunks = [(self._baseline.compress(chunk), chunk.num_rows) for chunk in regrouped([table], chunk_rows(partition))]
        path.write_bytes(pickle.dumps(chunks))
        sizes = {name: sum(len(part) for blobs, _ in chunks for part in blobs[name]) for name in chunks[0][0]}
        return {**sizes, LAYOUT: 4 * sum(len(parts) for blobs, _ in chunks for parts in blobs.values())}

    def decompress(self, partition: Partition, path: Path) -> pa.Table:
        return pa.concat_tables(self._baseline.decompress(*chunk) for chunk in pickle.loads(path.read_bytes()))


class Ours(Contestant):
    """The codec, in the files that the stage writes."""

    def __init__(self, bench: Bench, kappa: float, folder: Path) -> None:
        self._release, self._product = bench.release, Compressed(Store(str(folder)))
        if not (folder / "sha256").exists():
            stars = CodecConfig().stars
            sample = gather_stars(bench.store, hash_bound(SplitPart.TRAIN, stars, bench.rows), stars, bench.partitions)
            sha256 = self._product.write_card(fit_codec(sample, bench.bounds(kappa), kappa, self._release, bench.rows))
            self._product.write_tables()
            (folder / "sha256").write_text(sha256)
        self._card = self._product.read_card((folder / "sha256").read_text())
        self.extra_bytes = sum(self._product.store.size(name) for name in ("codec.json.gz", "elementary.json.gz"))

    def compress(self, table: pa.Table, partition: Partition, path: Path) -> dict[str, int]:
        summaries = write_chunks(self._chunks(table, partition), path, self._card, {})
        # What a column's coding takes is compared with others that have no checksum of each column and chunk.
        sizes = {name: summary.bytes - CHECKSUM_BYTES * chunks_of(partition) for name, summary in summaries.items()}
        return {**sizes, LAYOUT: path.stat().st_size - sum(sizes.values())}

    def _chunks(self, table: pa.Table, partition: Partition) -> Iterator[CodedChunk]:
        before = -1
        for chunk in regrouped([table], chunk_rows(partition)):
            yield encode_chunk(chunk, self._card, partition.tile, self._release, before)
            before = int(chunk[HEALPIX_29][-1].as_py())

    def decompress(self, partition: Partition, path: Path) -> pa.Table:
        names = column_names(self._card)
        with self._product.store.open_parquet(path.name) as file:
            table = pa.concat_tables(read_chunks(file, path.name, self._card, partition.tile, self._release, names))
        return table.drop_columns([HEALPIX_29])


def _network(name: str) -> Callable[[Bench, dict[str, Tolerance]], Baseline]:
    return lambda bench, bounds: Network(bench.release, bounds, bench.model(name).load())


class Method(NamedTuple):
    """A contestant by its needs.

    Attributes:
        make: the baseline, of the catalogue and its bounds.
        package: that it needs beside this one's, by the name that is imported.
        model: that must be trained for it, and is stored with it.
        lossless: whether it has no bound.
    """

    make: Callable[[Bench, dict[str, Tolerance]], Baseline] | None
    package: str = ""
    model: str = ""
    lossless: bool = False


def _per_star(**choices: bool) -> Method:
    return Method(lambda bench, bounds: PerStar(bench.release, bounds, **choices))


METHODS = {
    "parquet zstd": Method(lambda bench, bounds: Parquet(split=False), lossless=True),
    "parquet byte-stream-split zstd": Method(lambda bench, bounds: Parquet(split=True), lossless=True),
    "B2": _per_star(),
    "B3": _per_star(recompute=True),
    "B4": _per_star(recompute=True, pixel=True),
    "B4s": _per_star(recompute=True, pixel=True, split=True),
    "SZ3": Method(lambda bench, bounds: OneBound(bench.release, bounds, Arrays(sz3, of_sz3)), "pysz"),
    "zfp": Method(lambda bench, bounds: OneBound(bench.release, bounds, Arrays(zfp, of_zfp)), "zfpy"),
    "DeepSqueeze's scheme, 4 latents": Method(_network("ae4"), model="ae4"),
    "DeepSqueeze's scheme, 8 latents": Method(_network("ae8"), model="ae8"),
    "latents + corrections, 16 latents": Method(_network("vae"), model="vae"),
    SAFEGUARDS: Method(None, "compression_safeguards"),
    OURS: Method(None),
}


def contestant(bench: Bench, name: str, kappa: float) -> Contestant:
    """A contestant, ready to compress; ours is fitted the first time."""
    torch.set_num_threads(1)
    folder, method = bench.files(name, kappa), METHODS[name]
    folder.mkdir(parents=True, exist_ok=True)
    if method.make is None:
        return Ours(bench, kappa, folder)
    made = Contestant(method.make(bench, bench.bounds(kappa)))
    if method.model:
        made.extra_bytes = bench.store.size(RunPaths(method.model).model)
    return made


# What is measured -----------------------------------------------------------------------------------------------------
class Watch:
    """Seconds of this process, of what runs within it alone."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        self.wall_s += time.perf_counter() - self._started[0]
        self.cpu_s += time.process_time() - self._started[1]

    def part(self, stars: int) -> Part:
        return Part(stars, self.wall_s, self.cpu_s)


def there_and_back(bench: Bench, name: str, kappa: float) -> Part:
    """Every partition into files, and each file's stars made anew by a contestant that has nothing else; every value is compared.

    The result says what was found; the part is that of compressing.
    """
    fit, into, back, columns, worst = Watch(), Watch(), Watch(), dict[str, int](), Worst()
    with fit:
        made = contestant(bench, name, kappa)
    bounds, another = bench.bounds(0.0 if METHODS[name].lossless else kappa), contestant(bench, name, kappa)
    for partition, table in bench.tables():
        path = bench.files(name, kappa) / f"{partition.tile.order}-{partition.tile.pixel}.parquet"
        with into:
            sizes = made.compress(table, partition, path)
        with back:
            rebuilt = another.decompress(partition, path)
        columns = {column: columns.get(column, 0) + size for column, size in sizes.items()}
        worst = worst.with_(worst_of(table, rebuilt, bounds, bench.release))
    found = {"rows": bench.rows, "columns": columns, "extra_bytes": made.extra_bytes, "fit_s": fit.cpu_s, **asdict(worst)}
    found["cpu_rates"] = [bench.rows / watch.cpu_s for watch in (into, back)]
    bench.result(name, kappa).write_text(json.dumps(found))
    return into.part(bench.rows)


def safeguards(bench: Bench, kappa: float) -> Part:
    """One column of a million rows, with the errors of each as the bound, about what makes it smallest: zeros, or SZ3's output."""
    from compression_safeguards import Safeguards

    bounds, watch, packer = bench.bounds(kappa), Watch(), Packer()
    table = pa.concat_tables(table for _, table in bench.tables()).slice(0, COLUMN_ROWS)
    values = Originals({name: native(table[name]) for name in (COLUMN, bounds[COLUMN].error)})
    x, most = values[COLUMN], allowed(COLUMN, values, bounds, bench.release)
    guard = Safeguards(safeguards=[{"kind": "eb", "type": "abs", "eb": "most"}])
    sizes, worst = {}, 0.0
    errors = np.quantile(most[most > 0], (0.1, 0.5, 0.9)) if importlib.util.find_spec("pysz") else ()
    for error in (0.0, *errors):
        blob = sz3(x, error) if error else b""
        near = of_sz3(blob, len(x)) if error else np.zeros(len(x))
        with watch:
            correction = guard.compute_correction(x, near, late_bound={"most": most})
            packed = packer.pack(f"{error}", correction)
        sizes[error] = len(blob) + len(packed)
        off = np.abs(guard.apply_correction(near, correction) - x)
        worst = max(worst, float(np.divide(off, most, out=np.zeros(len(x)), where=most > 0).max()))
    found = {"rows": len(x), "columns": {COLUMN: min(sizes.values())}, "worst": worst, "extra_bytes": 0}
    found["cpu_rates"] = [len(x) * len(sizes) / watch.cpu_s]
    bench.result(SAFEGUARDS, kappa).write_text(json.dumps(found))
    return watch.part(len(x) * len(sizes))


def measured(bench: Bench, name: str, kappa: float) -> None:
    """Run a contestant in a fresh process; its result becomes a file."""
    for path in bench.files(name, kappa).glob("*"):
        path.unlink()
    run_once(bound(safeguards, bench, kappa) if name == SAFEGUARDS else bound(there_and_back, bench, name, kappa))


# Tables ---------------------------------------------------------------------------------------------------------------
Results = dict[tuple[str, float], dict[str, Any]]


def bytes_a_star(found: dict[str, Any]) -> float:
    return (sum(found["columns"].values()) + found["extra_bytes"]) / found["rows"]


def main_table(results: Results, kappas: Sequence[float]) -> str:
    """Bytes a star of every method, how fast it is and how near."""
    heads = [f"κ = {kappa:g}" for kappa in kappas]
    speed_at = 0.1 if 0.1 in kappas else kappas[0]
    lines = [["method", *heads, "compress, stars/s of CPU", "decompress", "worst error / bound", "values beyond"]]
    for name in METHODS:
        mine = {kappa: results[name, kappa] for kappa in kappas if (name, kappa) in results}
        if not mine or name == SAFEGUARDS:
            continue
        if METHODS[name].lossless:
            mine = dict.fromkeys(kappas, next(iter(mine.values())))
        cells = [f"{bytes_a_star(mine[kappa]):.1f}" if kappa in mine else "" for kappa in kappas]
        rates = mine.get(speed_at, next(iter(mine.values())))["cpu_rates"]
        worst, beyond = max(found["worst"] for found in mine.values()), sum(found["beyond"] for found in mine.values())
        lines.append([name, *cells, *(f"{rate:,.0f}" for rate in rates), f"{worst:.4f}", f"{beyond}"])
    return _markdown(lines)


def ratio_table(results: Results, kappas: Sequence[float]) -> str:
    """Ours as a share of the grids without prediction, beside what it should be."""
    lines = [["ours, of", *(f"{name}, at most" for name in ("B2", "B3", "B4", "B4s"))]]
    for kappa in kappas:
        cells = []
        for name in ("B2", "B3", "B4", "B4s"):
            pair = [results.get((method, kappa)) for method in (OURS, name)]
            aim = AIMS.get(kappa, {}).get(name)
            ratio = f"{bytes_a_star(pair[0]) / bytes_a_star(pair[1]):.3f}" if pair[0] and pair[1] else ""
            cells.append(ratio + (f", {aim}" if aim and ratio else ""))
        lines.append([f"κ = {kappa:g}", *cells])
    return _markdown(lines)


def column_table(results: Results, kappas: Sequence[float]) -> str:
    """Bits a star of each column, B4s and ours, and which columns are above B4s."""
    both = [kappa for kappa in kappas if (OURS, kappa) in results and ("B4s", kappa) in results]
    lines, above = [["column", *(f"κ = {kappa:g}: B4s, ours" for kappa in both)]], []
    names = [name for kappa in both[:1] for name in results[OURS, kappa]["columns"] if name in results["B4s", kappa]["columns"]]
    for name in names:
        bits = [[8 * results[m, kappa]["columns"][name] / results[m, kappa]["rows"] for m in ("B4s", OURS)] for kappa in both]
        lines.append([name, *(f"{a:.2f}, {b:.2f}" for a, b in bits)])
        above += (
            []
            if name == LAYOUT
            else [f"{name} at κ = {kappa:g} (by {b - a:.3f} bit)" for kappa, (a, b) in zip(both, bits, strict=True) if b > a]
        )
    return f"{_markdown(lines)}\n\nOurs above B4s: {'; '.join(above) or 'in no column'}."


def safeguards_lines(results: Results, kappas: Sequence[float]) -> str:
    told = []
    for kappa in kappas:
        if (found := results.get((SAFEGUARDS, kappa))) is not None:
            others = {m: results[m, kappa] for m in ("B4s", OURS) if (m, kappa) in results}
            bits = ", ".join(f"{m} {8 * other['columns'][COLUMN] / other['rows']:.2f}" for m, other in others.items())
            own = f"{8 * found['columns'][COLUMN] / found['rows']:.2f} bits a value"
            told.append(
                f"- κ = {kappa:g}: {own} ({bits}), {found['cpu_rates'][0]:,.0f} values/s of CPU, worst error / bound {found['worst']:.4f}"
            )
    return "\n".join([f"{SAFEGUARDS}, {COLUMN} of a million rows:", "", *told]) if told else ""


def _markdown(lines: list[list[str]]) -> str:
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([rows[0], f"|{' --- |' * len(lines[0])}", *rows[1:]])


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=2_000_000, help="mock stars (default 2 million)")
    parser.add_argument("--kappa", type=float, nargs="*", default=KAPPAS, help="bounds (default .01 .1 .5 1)")
    parser.add_argument("--methods", nargs="*", default=[""], help="only methods whose names contain one of these")
    parser.add_argument("--rows-seen", type=int, default=10_000_000, help="stars shown to each network (default 10 million)")
    parser.add_argument("--folder", default="", help="where stars, models and results are kept (default: a temporary folder)")
    parser.add_argument("--rows", type=Path, help="a parquet file of real rows: their code length, instead of mock stars")
    parser.add_argument("--columns", choices=("seed25", "all"), default="seed25", help="of real rows")
    options = parser.parse_args()
    logging.getLogger("gaiadask").setLevel(logging.WARNING)
    if options.rows:
        print(real_rows(options.rows, options.columns, options.kappa))
        return
    chosen = [name for name in METHODS if any(part in name for part in options.methods)]
    missing = {name for name in chosen if METHODS[name].package and not importlib.util.find_spec(METHODS[name].package)}
    for name in sorted(missing):
        print(f"{name} is left out: it needs the package {METHODS[name].package}, which the extra `benchmark` installs", flush=True)
    chosen = [name for name in chosen if name not in missing]
    with tempfile.TemporaryDirectory(prefix="gaiadask-bench-") as scratch:
        folder = Path(options.folder or scratch)
        (folder / "results").mkdir(parents=True, exist_ok=True)
        bench = prepared(folder, options.stars, [METHODS[n].model for n in chosen if METHODS[n].model], options.rows_seen)
        results: Results = {}
        for kappa in options.kappa:
            for name in chosen:
                at = KAPPAS[1] if METHODS[name].lossless else kappa
                if not (path := bench.result(name, at)).exists():
                    measured(bench, name, at)
                results[name, at] = json.loads(path.read_text())
                print(f"{name}, κ = {kappa:g}: {bytes_a_star(results[name, at]):.2f} bytes a star", file=sys.stderr, flush=True)
        print(f"{bench.rows:,} stars\n")
        for part in (main_table, ratio_table, column_table, safeguards_lines):
            print(f"{part(results, options.kappa)}\n")


if __name__ == "__main__":
    main()
