"""How long a spline flow of the prior takes to fit and to draw, beside the same flow as zuko computes it. Prints a table.

    python tests/benchmarks/flow_speed.py
    python tests/benchmarks/flow_speed.py --columns 24 --context 40 --repeats 9

Both have the same weights, and give the same densities, gradients and draws to float32's rounding (tests/test_prior.py). In turn, one thread:
a step of the fit (density of 512 stars, gradients), the density of 4,096 stars, and a draw of 2,048 stars. CPU microseconds a star: the
least and the median of all runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gaiadask.config.sections import PriorConfig
from gaiadask.prior.flows import one_thread
from gaiadask.prior.spline_flow import InverseFlow, log_density, new_flow

FIT, RATED, DRAWN = 512, 4_096, 2_048


def cpu_us(work: Callable[[], object], stars: int) -> float:
    """CPU microseconds a star."""
    began = time.process_time()
    work()
    return (time.process_time() - began) / stars * 1e6


def contestants(columns: int, context: int) -> dict[str, tuple[int, Callable[[], object], Callable[[], object]]]:
    """What is done: with how many stars, by zuko, by us."""
    torch.manual_seed(0)
    flow = new_flow(columns, context, PriorConfig())
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x, given = torch.randn(RATED, columns), torch.randn(RATED, context)

    def zuko(rows: int) -> Tensor:
        density: Tensor = flow(given[:rows]).log_prob(x[:rows])
        return density

    def ours(rows: int) -> Tensor:
        return log_density(flow, x[:rows], given[:rows])

    def step(density: Callable[[int], Tensor]) -> None:
        flow.zero_grad()
        density(FIT).mean().backward()

    def without_gradients(work: Callable[[], object]) -> Callable[[], object]:
        return torch.inference_mode()(work)

    inverse = InverseFlow(flow)
    return {
        "a step of the fit": (FIT, lambda: step(zuko), lambda: step(ours)),
        "densities": (RATED, without_gradients(lambda: zuko(RATED)), without_gradients(lambda: ours(RATED))),
        "draws": (
            DRAWN,
            without_gradients(lambda: flow(given[:DRAWN]).transform.inv(x[:DRAWN])),
            without_gradients(lambda: inverse(x[:DRAWN], given[:DRAWN])),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, nargs="+", default=[8, 14])
    parser.add_argument("--context", type=int, nargs="+", default=[12, 20], help="of each, in the same order")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    print(
        "| columns, given | | zuko: least, median | ours: least, median | ratio of the medians |\n| --- | --- | --- | --- | --- |"
    )
    with one_thread():
        for columns, context in zip(options.columns, options.context, strict=True):
            for name, (stars, *both) in contestants(columns, context).items():
                runs: list[list[float]] = [[], []]
                for repeat in range(options.repeats + 1):
                    for work, found in zip(both, runs, strict=True):
                        taken = cpu_us(work, stars)
                        if repeat:  # not the first time, when memory is touched first
                            found.append(taken)
                cells = [f"{min(found):.1f}, {statistics.median(found):.1f}" for found in runs]
                ratio = statistics.median(runs[0]) / statistics.median(runs[1])
                print(f"| {columns}, {context} | {name} | {' | '.join(cells)} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
