"""What a GPU gives: the same stars as a CPU, and how many a second. Prints a markdown table; ends with an error where stars differ.

    python tests/benchmarks/gpu.py            # on a machine with a GPU: at most eight minutes
    python tests/benchmarks/gpu.py --small    # anywhere, also on a CPU: a minute; shows that it works, its rates say nothing

- Correctness: one model trained on the device and one trained on the CPU encode and decode the same stars on both.
- Transform and forward: stars a second from raw columns in the device's memory to latents there, in float32 and in the number formats
  that a GPU multiplies faster, compiled and not, with the largest difference that each makes to a latent.
- Training: stars a second of the training step itself, from network inputs in the device's memory, and from codes there that each batch
  takes in shuffled order.
- End to end: stars a second from a catalogue's parquet to the latents', by the stage encode on one worker a core, which share the GPU; and
  the share of the time that the GPU was busy, as nvidia-smi tells it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from contest import mock_config

from gaiadask import catalogue
from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.decode import decode
from gaiadask.encode import encode
from gaiadask.ingest import read_catalogue_record
from gaiadask.inputs.transform import NetworkInputs
from gaiadask.model.card import latent_names
from gaiadask.model.device import torch_device
from gaiadask.model.device_transform import DeviceInputs, DeviceTransform, RawStars
from gaiadask.model.files import load_model
from gaiadask.model.star_model import StarModel
from gaiadask.stages.engine import run_stages
from gaiadask.stages.statistics import read_statistics
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths
from gaiadask.training.batches import Batch, Share
from gaiadask.training.codes import Codec, Decoder
from gaiadask.training.group import OneRank
from gaiadask.training.order import Order
from gaiadask.training.step import Learner, new_learner, step

TOLERANCE = 1e-4
"""Of a latent, whose standard deviation is about 1, and of a rebuilt value in interquartile ranges: float32 in another order."""


class Row(NamedTuple):
    """A row of the table."""

    what: str
    figure: str


class Sizes(NamedTuple):
    """How much is measured. stars: of the catalogue; rows_seen: in training; batch: stars on the device at once; batches: of training; seconds: of a measurement."""

    stars: int
    rows_seen: int
    batch: int
    batches: tuple[int, ...]
    seconds: float


def rate(work: Callable[[], int], device: torch.device, seconds: float) -> float:
    """Stars a second of `work`, which returns how many it did."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    wait()
    stars, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(8 if device.type == "cuda" else 1):
            stars += work()
        wait()
    return stars / (time.perf_counter() - started)


def trained(config: Config, name: str, device: str) -> Config:
    """The configuration of a run whose model has been trained on a device."""
    own = config.model_copy(update={"name": name, "cluster": config.cluster.model_copy(update={"device": device})})
    run_stages(own, ["statistics", "train"], workers=Here())
    return own


def differences(config: Config, group: object, device: str) -> Iterator[Row]:
    """How far latents and rebuilt stars of the device are from the CPU's."""
    here, there = (load_model(Store(config.store), RunPaths(config.name), each) for each in ("cpu", device))
    latents, others = encode(group, here), encode(group, there)
    names = latent_names(here.latents)
    yield from _checked(
        f"latents, trained on {config.cluster.device}", [np.abs(latents[n].to_numpy() - others[n].to_numpy()) for n in names]
    )
    rebuilt, again = decode(latents, here), decode(latents, there)
    off = []
    for name in here.transform.free:
        both = [table[name].drop_null().to_numpy().astype(np.float64) for table in (rebuilt, again)]
        width = np.subtract(*np.quantile(both[0], [0.75, 0.25])) or 1.0
        off.append(np.abs(both[0] - both[1]) / np.maximum(width, np.abs(both[0])))
    yield from _checked(f"rebuilt values, trained on {config.cluster.device}", off)


def _checked(what: str, off: list[np.ndarray]) -> Iterator[Row]:
    largest = max(float(each.max()) for each in off)
    if not largest <= TOLERANCE:
        raise SystemExit(f"{what}: the device's differ from the CPU's by {largest:.2g}, expected at most {TOLERANCE}")
    yield Row(f"largest difference of {what}, device against CPU", f"{largest:.1e}")


def forward_rates(model: StarModel, group: object, sizes: Sizes) -> Iterator[Row]:
    """Raw columns to latents, on the device."""
    device = model.device
    on_device = DeviceTransform.of(model.transform, device)
    assert on_device is not None
    raw = on_device.raw(group, model.transform.null_bits(group)).to(device)  # type: ignore[arg-type]
    times = -(-sizes.batch // raw.numbers.shape[1])
    raw = RawStars(*(part.repeat(1, times)[:, : sizes.batch].contiguous() for part in raw))
    network = model.network

    def of(inputs: DeviceInputs) -> torch.Tensor:
        return network.mean(inputs.values, inputs.condition)

    with torch.inference_mode():
        exact = of(on_device.forward(raw))
        variants: dict[str, Callable[[], torch.Tensor]] = {
            "transform alone": lambda: on_device.forward(raw).values,
            "float32": lambda: of(on_device.forward(raw)),
        }
        if device.type == "cuda":
            compiled = torch.compile(lambda: of(on_device.forward(raw)))
            variants |= {
                "tf32": variants["float32"],
                "bf16": variants["float32"],
                "compiled, float32": compiled,
                "compiled, tf32": compiled,
            }
        for name, work in variants.items():
            torch.set_float32_matmul_precision("high" if "tf32" in name else "highest")
            with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in name):
                found = work()
                off = float((found.float() - exact).abs().max()) if found.shape == exact.shape else 0.0
                stars = rate(lambda work=work: len(work()), device, sizes.seconds)  # type: ignore[misc]
            yield Row(f"transform and forward from device memory, {name} (latents differ by {off:.0e})", f"{stars:,.0f} stars/s")
        torch.set_float32_matmul_precision("highest")


class Coded(NamedTuple):
    """Stars as codes on the device, and what makes inputs of them."""

    codes: torch.Tensor
    decoder: Decoder

    @classmethod
    def of(cls, config: Config, inputs: NetworkInputs, sigma: np.ndarray, stars: int, device: torch.device) -> Coded:
        """At least so many, by the inputs of some."""
        store, run = Store(config.store), RunPaths(config.name)
        train = read_statistics(store, run, Manifest(store, run).require("statistics").key).train
        codec = Codec.fit(load_model(store, run).transform, train, errors=sigma.shape[1] > 0)
        codes = torch.from_numpy(codec.encode(inputs, sigma)).to(device)
        return cls(codes.repeat(-(-stars // len(codes)), 1), codec.decoder(device))


def _coded_rate(stars: Coded, learner: Learner, sizes: Sizes) -> Iterator[Row]:
    """The training step with its batches drawn from codes in the order of a pass."""
    rows, device = learner.training.batch_rows, stars.codes.device
    places, order = torch.arange(rows, device=device), Order.of(len(stars.codes), 0, 0, device)
    shown = 0

    def one() -> int:
        nonlocal shown
        numbers = order((places + shown) % len(stars.codes))
        step(learner, Share(stars.decoder(stars.codes.index_select(0, numbers)), places), 0, OneRank())
        shown += rows
        return rows

    yield Row(f"training from shuffled codes in device memory, batch {rows:,}", f"{rate(one, device, sizes.seconds):,.0f} stars/s")


def training_rates(model: StarModel, config: Config, group: object, sizes: Sizes) -> Iterator[Row]:
    """The training step, from network inputs on the device."""
    device, transform = model.device, model.transform
    inputs, sigma = transform.forward(group), transform.sigma(group)  # type: ignore[arg-type]
    stars = Batch(*(torch.from_numpy(part).to(device) for part in (*inputs, sigma)))
    for rows in sizes.batches:
        training = config.training.model_copy(update={"batch_rows": rows})
        learner = new_learner(transform, config.model, training, device)
        places = torch.arange(rows, device=device)
        batch = Share(stars.rows(places % len(stars)), places)

        def one(learner=learner, batch=batch, rows=rows) -> int:  # type: ignore[no-untyped-def]
            step(learner, batch, 0, OneRank())
            return int(rows)

        yield Row(f"training step on inputs in device memory, batch {rows:,}", f"{rate(one, device, sizes.seconds):,.0f} stars/s")
        yield from _coded_rate(Coded.of(config, inputs, sigma, sizes.batch, device), learner, sizes)


@contextmanager
def busy_share(device: torch.device) -> Iterator[list[float]]:
    """Percents of the time that the GPU was busy, as nvidia-smi tells them while the block runs; none where it is not there."""
    found: list[float] = []
    if device.type != "cuda" or not shutil.which("nvidia-smi"):
        yield found
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as watcher:
        try:
            yield found
        finally:
            watcher.terminate()
            found += [float(line) for line in watcher.communicate()[0].split()]


def end_to_end(config: Config, device: torch.device) -> Iterator[Row]:
    """The stage encode, from parquet to parquet."""
    cores = len(os.sched_getaffinity(0))
    cluster = config.cluster.model_copy(update={"workers": min(cores, 16)})
    rows = read_catalogue_record(Store(config.store)).rows
    own = config.model_copy(update={"cluster": cluster})
    with busy_share(device) as busy:
        started = time.perf_counter()
        run_stages(own, ["encode"])
        seconds = time.perf_counter() - started
    yield Row(f"encode, parquet to parquet with the workers' start, {cluster.workers} workers", f"{rows / seconds:,.0f} stars/s")
    if busy:
        yield Row("GPU busy meanwhile, mean", f"{statistics.mean(busy):.0f} %")


def measured(folder: Path, sizes: Sizes) -> Iterator[Row]:
    device = torch_device("auto")
    yield Row("device", torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU alone: nothing below is a GPU's")
    training = {"rows_seen": sizes.rows_seen, "validation_rows": 2_000}
    config = mock_config(folder, sizes.stars, partition_mb=16, training=training, prior={"kind": "none"})
    run_stages(config, ["ingest"])
    record = read_catalogue_record(Store(config.store))
    group = next(catalogue.iterate_partition(Store(config.store), paths.CATALOGUE, record.partitions[0].tile))
    there, here = trained(config, "device", device.type), trained(config, "host", "cpu")
    for each in (there, here):
        yield from differences(each, group, device.type)
    model = load_model(Store(there.store), RunPaths(there.name), device.type)
    yield from forward_rates(model, group, sizes)
    yield from training_rates(model, there, group, sizes)
    yield from end_to_end(there, device)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a GPU gives.")
    parser.add_argument("--small", action="store_true", help="few stars and short measurements: shows that the script works")
    parser.add_argument("--stars", type=int, default=4_000_000, help="mock stars of the catalogue (default 4 million)")
    options = parser.parse_args()
    sizes = (
        Sizes(30_000, 10_000, 8_192, (512,), 0.1)
        if options.small
        else Sizes(options.stars, 2_000_000, 262_144, (4_096, 65_536), 5.0)
    )
    started = time.perf_counter()
    print("| | |\n| --- | --- |")
    with tempfile.TemporaryDirectory(prefix="gaiadask-gpu-") as folder:
        for row in measured(Path(folder) / "store", sizes):
            print(f"| {row.what} | {row.figure} |", flush=True)
    print(f"\nIt took {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
