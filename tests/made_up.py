"""A few thousand stars with the seed's sixteen columns, roughly as stars are: input of the training tests.

Not the mock archive: no sky map, no errors, no nulls but those asked for; quick, and its nine free columns hang together
nonlinearly (an HR diagram with a turn-off, velocities that fall with distance), so that a network can beat PCA.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gaiadask.config.model import ModelConfig
from gaiadask.config.sections import TrainingConfig
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.model.card import LatentSummary, MetricsRecord, TrainingOutcome, TrainingSummary
from gaiadask.release.dr2 import COLUMNS, DR2, SEED16
from gaiadask.sky import healpix
from gaiadask.split import Part, hash64, part_of
from gaiadask.store.files import Store

VALIDATION = "validation.parquet"
"""Name of the file of validation stars in the store."""
FREE = tuple(name for name in SEED16 if not COLUMNS[name].derived_from and name not in ("ra", "dec"))


def made_up_stars(n: int, seed: int = 0, nulls: float = 0.0) -> pa.Table:
    """n stars with source_id and the sixteen columns; a share `nulls` of them lacks teff_val and a_g_val."""
    random = np.random.default_rng(seed)
    ra, dec = random.uniform(0, 360, n), np.degrees(np.arcsin(random.uniform(-1, 1, n)))
    distance_kpc = 0.1 + random.gamma(2.0, 0.5, n)
    giant = random.random(n) < 0.35
    colour = np.where(giant, random.normal(1.25, 0.12, n), random.gamma(6.0, 0.15, n) + 0.2)
    absolute_g = np.where(giant, random.normal(0.8, 0.9, n), 1.5 + 4.2 * colour**0.8 + random.normal(0, 0.15, n))
    a_g = np.round(random.gamma(1.5, 0.3, n) * np.minimum(distance_kpc, 1.5), 4)
    g = absolute_g + 5 * np.log10(distance_kpc * 100) + a_g
    bp_rp = colour + 0.45 * a_g + random.normal(0, 0.01, n)
    g_rp = 0.3 + 0.52 * bp_rp - 0.06 * (bp_rp - 1.2) ** 2 + random.normal(0, 0.006, n)
    velocity = np.where(giant, 45.0, 30.0)
    values = {
        "ra": ra,
        "dec": dec,
        "parallax": 1 / distance_kpc + random.normal(0, 0.01, n).clip(-0.03, 0.03),
        "pmra": (velocity * random.normal(0, 1, n) + 12 * np.sin(np.radians(ra))) / 4.74 / distance_kpc,
        "pmdec": (velocity * random.normal(0, 1, n) - 12 * np.cos(np.radians(dec))) / 4.74 / distance_kpc,
        "radial_velocity": velocity * random.normal(0, 1, n) + 15 * np.cos(np.radians(ra)),
        "phot_g_mean_flux": 10 ** (-0.4 * (g - 25.688)),
        "phot_bp_mean_flux": 10 ** (-0.4 * (g + bp_rp - g_rp - 25.351)),
        "phot_rp_mean_flux": 10 ** (-0.4 * (g - g_rp - 24.762)),
        "teff_val": np.round(4600 / (0.92 * colour + 1.7) + 4600 / (0.92 * colour + 0.62) + random.normal(0, 80, n)),
        "a_g_val": a_g,
    }
    values |= DR2.derive(values, [name for name in SEED16 if COLUMNS[name].derived_from])
    source_id = healpix(ra, dec, 12) << 35 | random.integers(0, 2**27, n) << 7
    missing = random.random(n) < nulls
    columns = [pa.array(source_id)]
    for name in SEED16:
        lost = missing if name in ("teff_val", "a_g_val", "radius_val", "lum_val") else np.zeros(n, bool)
        numbers = np.asarray(values[name], COLUMNS[name].dtype.to_pandas_dtype())
        columns.append(pa.array(numbers, COLUMNS[name].dtype, mask=lost | ~np.isfinite(numbers)))
    return pa.table(columns, names=["source_id", *SEED16])


def write_partitions(store: Store, table: pa.Table, files: int = 3, row_group_rows: int = 1_000) -> list[str]:
    """The table cut into files of several row groups, their names in the store; and its validation stars, as the stage train has them."""
    ids = table["source_id"].to_numpy()
    order = np.argsort(hash64(ids), kind="stable")
    with store.writing(VALIDATION) as scratch:
        pq.write_table(table.take(order[part_of(ids)[order] == Part.VALIDATION]), scratch)
    names = []
    for i, rows in enumerate(np.array_split(np.arange(table.num_rows), files)):
        names.append(f"catalogue/dataset/{i}.parquet")
        with store.writing(names[-1]) as scratch:
            pq.write_table(table.take(rows), scratch, row_group_size=row_group_rows)
    return names


def fitted(table: pa.Table, position: str = "condition") -> Transform:
    """The transform of the table's train stars."""
    return Transform.fit(SEED16, Statistics.from_table(table, DR2).train, DR2, position)


def untrained(config: ModelConfig, key: str) -> TrainingOutcome:
    """What training would leave of a network that was not trained, beside its weights."""
    summary = TrainingSummary(
        config=TrainingConfig(), rows_seen=7, best_rows_seen=7, stopped_early=False, seconds=1.0, rows_per_s=7.0, parameters=1,
        validation_rows=1, device="cpu",
    )  # fmt: skip
    metrics = MetricsRecord(
        rows_seen=7, seconds=1.0, learning_rate=0.01, kl_weight=1.0, train_loss=None, train_reconstruction=None, train_kl=None,
        validation_loss=1.5, validation_reconstruction=1.0, validation_kl=0.5, median_error={}, active_units=config.latents,
        latents=(LatentSummary(kl=1.0, mean=0.0, std=1.0),) * config.latents,
    )  # fmt: skip
    return TrainingOutcome(key=key, model=config, training=summary, metrics=metrics, metadata={"catalogue_id": "c"})
