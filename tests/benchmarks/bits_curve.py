"""What bits buy: flows trained on mock stars, their latents rounded to more and fewer bits, beside codes without a network. Prints tables.

    python tests/benchmarks/bits_curve.py                                  # two seeds of ten minutes each on two cores
    python tests/benchmarks/bits_curve.py --stars 150000 --shown 1000000 --seeds 0
    python tests/benchmarks/bits_curve.py --start seed25-nulls --bits 128   # 25 columns, of which many are null
    python tests/benchmarks/bits_curve.py --folder /data/bench             # keeps stars and models; goes on where it was stopped

Each seed is a run of its own, `ingest` to `evaluate`, as `gaiadask init --bits` configures it; the numbers are those of its `quality.json`:
of test stars, over all columns but position. A cell of the first table: mean over columns of the median |error| / IQR, worst column, mean of
the 99 % quantiles, share within the star's own error, mean Kolmogorov-Smirnov distance. The last column is the mean error, and the 99 % quantile,
in shares of what quantile codes of the same bits have.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import gaiadask
from gaiadask.config.presets import STARTS, start_with_bits
from gaiadask.config.sections import Config
from gaiadask.config.toml import parse_config
from gaiadask.quality.records import Quality, RatePoint
from gaiadask.stages.engine import run_stages
from gaiadask.stages.train import TrainResult


def config_of(options: argparse.Namespace, seed: int) -> Config:
    """A run as `gaiadask init --bits` begins it."""
    return parse_config({
        **start_with_bits(options.start, options.bits),
        "name": f"bits-{options.bits}-{options.shown}-{seed}",
        "store": str(options.folder / options.start),
        "archive": {"kind": "mock", "mock_stars": options.stars},
        "training": {"rows_seen": options.shown, "seed": seed},
        "quality": {"rows": 20_000, "two_sample_rows": 5_000},
    })  # fmt: skip


def cell(point: RatePoint) -> str:
    """One code at one budget."""
    return f"{point.error:.2g}, {point.worst:.2g}, {point.p99:.2g}, {point.within_1_sigma:.0%}, {point.ks:.2g}"


def curve_table(quality: Quality) -> str:
    """A line for each budget."""
    curve = quality.curve
    assert curve is not None, "latents of flows are rounded"
    lines = [
        "| bits | the flow | quantile codes | PCA, all components | of quantile codes': mean error, 99 % |",
        "| --- | --- | --- | --- | --- |",
    ]
    for flow, quantiles, pca in zip(curve.codes["model"], curve.codes["quantiles"], curve.codes["pca"], strict=True):
        stored = flow.bits == curve.stored_bits
        shares = f"{flow.error / quantiles.error:.2f}, {flow.p99 / quantiles.p99:.2f}"
        cells = (f"**{flow.bits}, as stored**" if stored else str(flow.bits), cell(flow), cell(quantiles), cell(pca), shares)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def told_apart(quality: Quality) -> list[str]:
    """AUCs of rebuilt, new and other real stars against real ones, with 1.96 standard errors: raw columns, and with physics."""
    assert quality.two_sample is not None
    cells = []
    for name in ("rebuilt", "sampled", "real"):
        comparison = quality.two_sample.comparisons.get(name)
        results = [comparison.classifiers.get(features) if comparison else None for features in ("raw", "physics")]
        cells.append(", ".join(f"{r.mean:.3f} ± {1.96 * (r.spread or 0):.3f}" if r else "–" for r in results))
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=1_100_000, help="mock stars before the selection")
    parser.add_argument("--start", choices=STARTS, default="seed16")
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--shown", type=int, default=40_000_000, help="stars shown to the network")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--folder", type=Path, help="of the stores; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        lines = []
        for seed in options.seeds:
            config = config_of(options, seed)
            trained = run_stages(config)["train"]
            quality = gaiadask.open_run(f"{config.store}/runs/{config.name}").quality
            seconds = f"{trained.seconds:,.0f} s" if isinstance(trained, TrainResult) else "earlier"
            print(f"Seed {seed}, {quality.stars:,} test stars, trained in {seconds}:\n\n{curve_table(quality)}\n", flush=True)
            assert quality.storage is not None
            lines.append(f"| {seed} | {' | '.join(told_apart(quality))} | {quality.storage.on_disk:.1f} |")
        print(
            "| seed | rebuilt: AUC raw, with physics | new | other real ones | bytes a star on disk |\n| --- | --- | --- | --- | --- |"
        )
        print("\n".join(lines))


if __name__ == "__main__":
    main()
