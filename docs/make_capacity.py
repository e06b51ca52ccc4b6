"""Write docs/capacity.md, and the table of sizes in deploy/README.md, computed from the measured rates of gaiadask/rates.toml.

python docs/make_capacity.py     # `make docs`; a test fails where the pages are not what this writes
"""

from __future__ import annotations

from pathlib import Path

from gaiadask.capacity import DR2_STARS, Rates, StageRates, estimate, read_rates
from gaiadask.config.sections import CatalogueConfig, TrainingConfig

UNMEASURED = "not measured"
PAGE = Path(__file__).with_name("capacity.md")
DEPLOY = Path(__file__).parents[1] / "deploy" / "README.md"
SIZES = ((1_000_000, 2), (10_000_000, 4), (100_000_000, 16), (DR2_STARS, 64))  # stars, and workers that they are worth
TRAIN_SHARE = 0.8  # of the stars are shown once
PARTITION = CatalogueConfig().partition_mb * 1e6
BUDGET = TrainingConfig().rows_seen
GB_A_WORKER = 4
SIZES_BEGIN, SIZES_END = "<!-- sizes: written by docs/make_capacity.py (`make docs`) -->\n", "<!-- end of sizes -->\n"
WIDTHS = (25, 94)
MACHINES = (("worker", 1), ("worker", 8), ("worker", 64), ("gpu", 1), ("gpu", 8))


def capacity_page(rates: Rates) -> str:
    """The page, as Markdown."""
    lines = [_head(rates), "## Rates", "", "| stage | of one | stars/s | columns | machine | date | command |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for stage in rates.stages:
        for unit, rates_of in (("worker", stage.worker), ("GPU", stage.gpu)):
            for rate in rates_of:
                figure = f"{rate.rate:,.0f}" if rate.rate else UNMEASURED
                command = f"`{rate.command}`" if rate.command else ""
                lines.append(f"| {stage.name} | {unit} | {figure} | {rate.columns} | {rate.machine} | {rate.date} | {command} |")
    for columns in WIDTHS:
        lines += ["", f"## {columns} columns", "", "| stage | on | hours | USD | bottleneck |", "| --- | --- | --- | --- | --- |"]
        lines += [
            _row(rates, stage, columns, *machine) for stage in rates.stages for machine in MACHINES if getattr(stage, machine[0])
        ]
    return "\n".join(lines) + "\n"


def sizes_table(rates: Rates) -> str:
    """What a run of so many stars needs, as a table in Markdown."""
    lines = ["| stars | columns | partitions | disk, GB | workers | memory, GB | hours | download, hours |", "| --- " * 8 + "|"]
    stages = {stage.name: stage for stage in rates.stages}
    for stars, workers in SIZES:
        for columns in WIDTHS:
            catalogue = stars * stages["statistics"].store * columns / WIDTHS[0]
            # What encode moves, but for the catalogue that it reads, are the latents; they have no more columns than before.
            latents = stars * (stages["encode"].store - stages["statistics"].store)
            disk = 2 * catalogue + latents  # ingest's parts are there until the partitions are
            shown = {"ingest": stars, "statistics": stars, "train": max(round(TRAIN_SHARE * stars), BUDGET), "encode": stars}
            estimates = [estimate(rates, stages[name], columns, "worker", workers, n) for name, n in shown.items()]
            hours = _figure(sum(found.hours for found in estimates if found)) if all(estimates) else UNMEASURED
            download = stars * stages["ingest"].download / rates.limits.download / 3600
            lines.append(
                f"| {stars:,} | {columns} | {max(1, round(catalogue / PARTITION)):,} | {_figure(disk / 1e9)} | {workers} | "
                f"{(workers + 1) * GB_A_WORKER} | {hours} | {_figure(download)} |"
            )
    return "\n".join(lines) + "\n"


def _figure(number: float) -> str:
    return f"{float(f'{number:.2g}'):,.0f}" if number >= 10 else f"{number:.1f}" if number >= 0.95 else f"{max(number, 0.01):.2f}"


def with_sizes(page: str, rates: Rates) -> str:
    """The page with the table of sizes between its marks."""
    before, _, rest = page.partition(SIZES_BEGIN)
    _, _, after = rest.partition(SIZES_END)
    return f"{before}{SIZES_BEGIN}\n{sizes_table(rates)}\n{SIZES_END}{after}"


def _head(rates: Rates) -> str:
    return f"""\
<!-- Written by docs/make_capacity.py (`make docs`) from gaiadask/rates.toml: change the rates there. -->

# How long the whole catalogue takes

Time and cost of the {DR2_STARS:,} stars of Gaia DR2, computed from measured rates. A worker is one thread on one core. The
assumptions: workers share the work evenly; where no rate was measured for stars of 94 columns, one takes {94 / 25:.2f} times as long as one of 25; a training run shows every train star once; a worker costs {rates.prices.worker_hour:g} USD an hour and a GPU with its
cores {rates.prices.gpu_hour:g}; all workers together read and write {rates.limits.store / 1e9:g} GB/s of the store, and the archive gives
{rates.limits.download / 1e6:g} MB/s. Rates and assumptions stand in gaiadask/rates.toml.
"""


def _row(rates: Rates, stage: StageRates, columns: int, unit: str, count: int) -> str:
    machine = f"{count} {'GPU' if unit == 'gpu' else 'worker'}{'s' * (count > 1)}"
    found = estimate(rates, stage, columns, unit, count)
    if found is None:
        return f"| {stage.name} | {machine} | {UNMEASURED} | | |"
    cost = found.hours * count * getattr(rates.prices, f"{unit}_hour")
    return f"| {stage.name} | {machine} | {found.hours:,.2f} | {cost:,.2f} | {found.bottleneck} |"


if __name__ == "__main__":
    PAGE.write_text(capacity_page(read_rates()), encoding="utf-8")
    DEPLOY.write_text(with_sizes(DEPLOY.read_text(encoding="utf-8"), read_rates()), encoding="utf-8")
