"""Write docs/capacity.md: time and cost of the whole catalogue, computed from the measured rates of gaiadask/rates.toml.

python docs/make_capacity.py     # `make docs`; a test fails where the page is not what this writes
"""

from __future__ import annotations

from pathlib import Path

from gaiadask.capacity import DR2_STARS, Rates, StageRates, estimate, read_rates

UNMEASURED = "not measured"
PAGE = Path(__file__).with_name("capacity.md")
WIDTHS = (25, 94)
MACHINES = (("worker", 1), ("worker", 8), ("worker", 64), ("gpu", 1), ("gpu", 8))


def capacity_page(rates: Rates) -> str:
    """The page, as Markdown."""
    lines = [_head(rates), "## Rates", "", "| stage | of one | stars/s | columns | machine | date | command |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for stage in rates.stages:
        for unit, rate in (("worker", stage.worker), ("GPU", stage.gpu)):
            if rate is not None:
                figure = f"{rate.rate:,.0f}" if rate.rate else UNMEASURED
                command = f"`{rate.command}`" if rate.command else ""
                lines.append(f"| {stage.name} | {unit} | {figure} | {rate.columns} | {rate.machine} | {rate.date} | {command} |")
    for columns in WIDTHS:
        lines += ["", f"## {columns} columns", "", "| stage | on | hours | USD | bottleneck |", "| --- | --- | --- | --- | --- |"]
        lines += [
            _row(rates, stage, columns, *machine) for stage in rates.stages for machine in MACHINES if getattr(stage, machine[0])
        ]
    return "\n".join(lines) + "\n"


def _head(rates: Rates) -> str:
    return f"""\
<!-- Written by docs/make_capacity.py (`make docs`) from gaiadask/rates.toml: change the rates there. -->

# How long the whole catalogue takes

Time and cost of the {DR2_STARS:,} stars of Gaia DR2, computed from measured rates. A worker is one thread on one core. The
assumptions: workers share the work evenly; a star of 94 columns takes {94 / 25:.2f} times as long as one of 25 where no rate was
measured for it; a training run shows every train star once; a worker costs {rates.prices.worker_hour:g} USD an hour and a GPU with its
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
