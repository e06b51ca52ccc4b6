"""Inputs of a report without a run: mock stars, the same rebuilt with errors of known size, and records as a run leaves them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gaiadask.codec.bounds import Tolerance
from gaiadask.codec.compressed import CompressedColumn, CompressedRecord, SizeAtBound
from gaiadask.config.sections import Config
from gaiadask.config.toml import parse_config
from gaiadask.model.card import CardColumn, LatentSummary, MetricsRecord, ModelCard, TrainingSummary, ValueErrors
from gaiadask.quality import Rated, bytes_a_star, rate
from gaiadask.quality.records import AucResult, Comparison, Joint, Outlier, Outliers, Quality, RateCurve, RatePoint, TwoSample
from gaiadask.release.column import SOURCE_ID
from gaiadask.release.dr2 import BP_ZERO_POINT, COLUMNS, DR2, G_ZERO_POINT, RP_ZERO_POINT, SEED16, SEED25
from gaiadask.report import ReportInputs
from gaiadask.store.manifest import ManifestRecord, StageEntry


# Mock stars ---------------------------------------------------------------------------------------------------------
def free_columns(n: int, seed: int = 0) -> dict[str, NDArray]:
    """What does not follow from the rest, of stars with a main sequence, giants, and errors that grow with magnitude."""
    rng = np.random.default_rng(seed)
    giant = rng.random(n) < 0.25
    absolute = np.where(giant, rng.normal(0.6, 0.9, n), rng.normal(4.5, 1.4, n))
    colour = np.where(giant, 1.25 + 0.12 * (0.6 - absolute), 0.2 + 0.16 * absolute) + rng.normal(0, 0.04, n)
    distance_pc = rng.gamma(3.0, 250.0, n) + 30
    g = absolute + 5 * np.log10(distance_pc / 10)
    sigma = 0.03 * 10 ** (0.12 * np.maximum(g - 13, 0)) * rng.lognormal(0, 0.3, n)
    dec = np.degrees(np.arcsin(np.clip(rng.normal(0, 0.35, n), -1, 1)))
    values = {
        "ra": rng.uniform(0, 360, n),
        "dec": dec,
        "parallax": 1000 / distance_pc + sigma * rng.normal(size=n),
        "pmra": rng.normal(0, 40, n) * 300 / distance_pc,
        "pmdec": rng.normal(-10, 40, n) * 300 / distance_pc,
        "radial_velocity": rng.normal(0, 35, n),
        "phot_g_mean_flux": 10 ** (-0.4 * (g - G_ZERO_POINT)),
        "phot_bp_mean_flux": 10 ** (-0.4 * (g + 0.45 * colour - BP_ZERO_POINT)),
        "phot_rp_mean_flux": 10 ** (-0.4 * (g - 0.55 * colour - RP_ZERO_POINT)),
        "teff_val": np.round(8200 * 10 ** (-0.17 * colour) + rng.normal(0, 60, n)),
        "a_g_val": rng.gamma(2.0, 0.15, n),
    }
    for name in SEED16:
        if error := COLUMNS[name].error_column:
            relative = np.abs(values[name]) * 1e-3 if "flux" in name else 1.0
            values[error] = sigma * relative * rng.lognormal(0, 0.2, n) + 1e-6
    return values


def as_table(values: dict[str, NDArray], columns: tuple[str, ...], null_share: dict[str, float], seed: int) -> pa.Table:
    """A table with derived columns, and nulls in the given shares of some columns (the same rows for the same seed)."""
    values = values | DR2.derive(values, DR2.derivable(columns))
    rng = np.random.default_rng(seed)
    n = len(values["ra"])
    arrays = {SOURCE_ID: pa.array(np.arange(n) * 128)}
    for name in columns:
        hidden = (rng.random(n) < null_share.get(name, 0.0)) | ~np.isfinite(values[name])
        arrays[name] = pa.array(values[name], mask=hidden).cast(COLUMNS[name].dtype)
    return pa.table(arrays)


def disturbed(values: dict[str, NDArray], by: float, seed: int) -> dict[str, NDArray]:
    """The stars with an error of `by` standard deviations in each free column (multiplicative where positive)."""
    rng = np.random.default_rng(seed)
    out = dict(values)
    for name in SEED16:
        if name in values and name not in ("ra", "dec"):
            noise = by * rng.standard_t(3, len(values[name]))
            positive = "flux" in name
            out[name] = values[name] * np.exp(noise) if positive else values[name] + noise * values[name].std()
    return out


# Inputs -------------------------------------------------------------------------------------------------------------
def mock_config(columns: tuple[str, ...], **changes: Any) -> Config:
    values: dict[str, Any] = {
        "name": "trial",
        "archive": {"kind": "mock"},
        "selection": {"columns": "seed25", "not_null": []},
        "model": {"columns": list(columns), "latents": 4},
        "quality": {"two_sample_rows": 100, "two_sample_seeds": 2},
    }
    return parse_config(values | changes)


def mock_inputs(
    n: int = 3_000,
    columns: tuple[str, ...] = SEED16,
    catalogue_columns: tuple[str, ...] = SEED25,
    null_share: dict[str, float] | None = None,
    baseline: bool = True,
    tested: bool = False,
    width: int = 4,
    sampled: bool = True,
    **config: Any,
) -> ReportInputs:
    """Inputs as a run leaves them; the rating is the real one, without its two-sample tests where these are not asked for."""
    values = free_columns(n)
    nulls = null_share or {}
    real = as_table(values, catalogue_columns, nulls, 3)
    rebuilt = as_table(disturbed(values, 0.02, 1), columns, nulls, 3)
    pca = as_table(disturbed(values, 0.06, 2), columns, nulls, 3) if baseline else None
    z = np.random.default_rng(5).normal(size=(n, width)).astype(np.float32)
    new = as_table(free_columns(n, 6), columns, nulls, 7).select(list(columns)) if sampled else None
    rated = Rated(real.select([SOURCE_ID, *catalogue_columns]), rebuilt, z, DR2, pca, new)
    settings = mock_config(columns, **config)
    size = bytes_a_star(10 * n, 4 * width, 1, 400_000, 60 * n, 900 * n)
    quality = rate(rated, settings.quality, two_sample=None if tested else {}, storage=size)
    return ReportInputs(settings, card(settings, width), manifest(), quality, metrics(width), rated, None, {"written": 10 * n})


def card(config: Config, width: int) -> ModelCard:
    columns = [(name, COLUMNS[name]) for name in config.model_columns]
    training = TrainingSummary(
        config=config.training, rows_seen=12_000_000, best_rows_seen=9_000_000, stopped_early=False, seconds=120.0,
        rows_per_s=1e5, parameters=1_000, validation_rows=500, device="cpu",
    )  # fmt: skip
    return ModelCard(
        format_version=2,
        key="0123456789abcdef",
        columns=tuple(CardColumn(name=n, unit=c.unit, ucd=c.ucd, dtype=str(c.dtype), role="free") for n, c in columns),
        transform={},
        model=config.model,
        training=training,
        metrics=record(9, width),
        latents=tuple(LatentSummary(kl=3.0 / (i + 1), mean=0.0, std=1.0) for i in range(width)),
        errors=ValueErrors(),
        metadata={},
        versions={"torch": "2.10"},
    )


def manifest() -> ManifestRecord:
    entry = StageEntry(
        key="fedcba9876543210", inputs={}, result={"catalogue_id": "00ca7a10900e1d00"}, seconds=12.3,
        finished="2026-01-02T03:04:05+00:00",
    )  # fmt: skip
    return ManifestRecord(format=1, run="trial", stages={"ingest": entry, "train": entry}, versions={"gaiadask": "0.1.0"})


def record(i: int, width: int) -> MetricsRecord:
    return MetricsRecord(
        rows_seen=1_000_000 * i, seconds=10.0 * i, learning_rate=1e-3, kl_weight=1.0,
        train_loss=-10 + 40 / i, train_reconstruction=-30 + 38 / i, train_kl=20 + 2 / i,
        validation_loss=-9 + 40 / i, validation_reconstruction=-29 + 38 / i, validation_kl=20 + 2 / i,
        median_error={}, active_units=width, latents=(LatentSummary(kl=1.0, mean=0.0, std=1.0),) * width,
    )  # fmt: skip


def metrics(width: int) -> list[MetricsRecord]:
    return [record(i, width) for i in range(1, 13)]


def bare(inputs: ReportInputs) -> ReportInputs:
    """The inputs without anything that may be missing."""
    joint = Joint(hr_diagram=None, sky=None, velocity_dispersions=None, density_coverage=None)
    quality = Quality(
        key="", stars=inputs.stars, latents=inputs.latents, reconstruction={}, two_sample=None, joint=joint, sampling=None,
        storage=None, skipped={},
    )  # fmt: skip
    model = inputs.card.model_copy(update={"latents": (), "versions": {}})
    empty = ManifestRecord(format=1, run="trial", stages={}, versions={})
    return replace(inputs, card=model, manifest=empty, quality=quality, metrics=[], rows={})


def complete(inputs: ReportInputs) -> ReportInputs:
    """The inputs with everything that may be there: AUCs, the curve of bits, stars like no other, a compressed catalogue."""
    aucs = Comparison.of({name: auc_result(name, mean) for name, mean in (("raw", 0.551), ("physics", 0.612), ("mlp", 0.524))})
    tests = TwoSample(
        rows_a_side=100, rows_asked=100, folds=3, seeds=1, max_iter=150,
        comparisons=dict.fromkeys(("rebuilt", "sampled", "real", "baseline", "copula", "independent"), aucs),
    )  # fmt: skip
    curve = RateCurve(
        stars=300, stored_bits=60, entropy_bits=55.5,
        codes={name: tuple(rate_point(bits, scale / bits) for bits in (24, 48, 96)) for name, scale in CODES.items()},
    )  # fmt: skip
    star = Outlier(
        source_id=4_122_351_465_158_867_968, ra=260.343, dec=-19.2363, error_sigma=1_395.0, log_likelihood=-83.6,
        column="phot_g_mean_flux", unit="'electron'.s**-1", value=1.323e5, rebuilt=1.588e5, error=19.0,
    )  # fmt: skip
    stars = tuple(star.model_copy(update={"source_id": star.source_id - i, "error_sigma": 1_395.0 / (1 + i)}) for i in range(3))
    quality = inputs.quality.model_copy(
        update={"two_sample": tests, "curve": curve, "outliers": Outliers(worst_rebuilt=stars, least_likely=stars)}
    )
    return replace(inputs, quality=quality, compressed=compressed_record())


def auc_result(features: Any, mean: float) -> AucResult:
    return AucResult(features=features, mean=mean, spread=None, values=(mean,), rows=100, folds=3, inputs=(), seconds_per_fit=0.1)


CODES = {"model": 0.1, "quantiles": 0.4, "pca": 0.2}


def rate_point(bits: int, error: float) -> RatePoint:
    return RatePoint(
        bits=bits, error=error, worst=2 * error, worst_column="pmra", p99=9 * error, ks=0.1 * error, within_1_sigma=0.5
    )


def compressed_record() -> CompressedRecord:
    column = CompressedColumn(
        bytes=24_500, worst=0.999, exceptions=3, tolerance=Tolerance(kind="sigma", amount=0.1, error="parallax_error"), raw_bits=64,
        alone_bits=9.31, noise_bits=4.37,
    )  # fmt: skip
    mask = column.model_copy(update={"tolerance": Tolerance(kind="exact"), "raw_bits": 1, "noise_bits": None, "bytes": 1_250})
    return CompressedRecord(
        version=1, key="k", catalogue_id="c", bound_sigma=0.1, card="s", tables="t", rows=10_000, bytes=50_000,
        columns={"null:parallax": mask, "parallax": column}, sizes=(SizeAtBound(bound_sigma=1.0, bytes_a_star=4.0),), partitions=(),
    )  # fmt: skip
