"""Stage evaluate: test stars, real and rebuilt, and new ones, rated: quality.json."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
from pydantic import Field

from gaiadask.catalogue import batches
from gaiadask.cluster.workers import Task
from gaiadask.errors import DataError
from gaiadask.model.star_model import StarModel
from gaiadask.prior import load_prior_cached
from gaiadask.quality import AucResult, Job, Rated, rate, run_job, two_sample_jobs
from gaiadask.quality.curve import rate_curve
from gaiadask.quality.files import rating_is_whole, save_latent_traversal, save_quality, save_rated
from gaiadask.quality.gather import BASELINE_STARS, COMPARED_STARS, Gather, Gathered, storage, with_baseline
from gaiadask.quality.records import REBUILT, SAMPLED, Outliers, Quality
from gaiadask.quality.single_stars import Stars, outliers_of, outliers_record
from gaiadask.quality.traversal import latent_traversal
from gaiadask.records import JsonObject, Record, StageResult
from gaiadask.sample import SampleBlocks, SampleRequest, blocks_of
from gaiadask.split import Part, hash_bound
from gaiadask.stages.context import Context
from gaiadask.stages.stage import StageWork

OUTLIERS_SHOWN = 10
"""Rated stars that the report shows for each reason: a table that is read at a glance."""


class ErrorSummary(Record):
    """Over all columns but ra and dec; null where it is undefined or infinite."""

    median_mean: float | None = Field(description="median |error| / IQR, mean of columns")
    median_worst: float | None = Field(description="median |error| / IQR of the worst column")
    ks_mean: float | None = Field(description="Kolmogorov-Smirnov distance, mean of columns")
    ks_worst: float | None = Field(description="Kolmogorov-Smirnov distance of the worst column")
    median_mean_error: float | None = Field(None, description="standard error of median_mean")
    median_worst_error: float | None = Field(None, description="standard error of median_worst")


class EvaluateResult(StageResult):
    """Result of the stage evaluate: the main numbers of quality.json."""

    test_stars: int = Field(description="stars rated")
    rebuilt: ErrorSummary | None = Field(None, description="by the model")
    baseline: ErrorSummary | None = Field(None, description="by PCA of the same width")
    two_sample_auc: float | None = Field(None, description="of the best classifier, real against rebuilt stars")
    two_sample_interval: tuple[float, float] | None = Field(None, description="its 95 % interval")
    sampled_auc: float | None = Field(None, description="of the best classifier, real against new stars")
    sampled_interval: tuple[float, float] | None = Field(None, description="its 95 % interval")
    bytes_a_star: float | None = Field(None, description="of the latents, everything counted")

    def summary(self) -> str:
        parts = [f"{self.test_stars:,} test stars"]
        for name, error in (("rebuilt", self.rebuilt), ("PCA", self.baseline)):
            if error is not None and error.median_mean is not None and error.median_worst is not None:
                mean = f"{error.median_mean:.4f}{_plus_minus(error.median_mean_error)}"
                parts.append(
                    f"{name} within {mean} IQR (worst column {error.median_worst:.3f}{_plus_minus(error.median_worst_error)})"
                )
        for name, auc, interval in (
            ("rebuilt", self.two_sample_auc, self.two_sample_interval), ("new stars", self.sampled_auc, self.sampled_interval)
        ):  # fmt: skip
            if auc is not None:
                told = "hardly told" if interval and interval[0] <= 0.5 else "told"
                between = f" (95 %: {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
                parts.append(f"{name} {told} from real ones at AUC {auc:.3f}{between}")
        if self.bytes_a_star is not None:
            parts.append(f"{self.bytes_a_star:.1f} bytes a star")
        return "; ".join(parts)


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" ± {error:.1g}"


def _inputs(context: Context) -> JsonObject:
    return {"encode": context.key("encode"), "prior": context.key("prior"), "quality": context.config.quality.for_key()}


def _make(context: Context, key: str) -> EvaluateResult:
    store, run, record, config = context.store, context.run, context.catalogue, context.config.quality
    model = context.model.on_cpu().load()
    bounds = (
        hash_bound(part, stars, record.rows)
        for part, stars in ((Part.TEST, config.rows), (Part.TRAIN, BASELINE_STARS), (Part.TRAIN, COMPARED_STARS))
    )
    gather, merged = Gather(context.model, config.rows, *bounds), partial(Gathered.merged, most=config.rows)
    gathered = context.workers.reduce(gather, merged, batches(record.partitions), "stars to rate", context.progress, size=len)
    if not gathered.test.real.num_rows:
        raise DataError("no star of the catalogue is a test star (1 in 10 is): the catalogue is too small to rate a model on")
    rated = with_baseline(gathered, model, _sampled(context, gathered.test.real.num_rows))
    train = gathered.compared if rated.sampled is not None else None
    jobs = two_sample_jobs(rated, config)
    tests: Task[Job, AucResult] = Task("two-sample", unit="tests", label=lambda job: job.name)
    two_sample = {job.name: auc for job, auc in zip(jobs, context.map(run_job, jobs, tests), strict=True)}
    curve = rate_curve(model, rated.real, gathered.train)
    size = storage(store, run, model, record.rows)
    quality = rate(rated, config, key=key, two_sample=two_sample, storage=size, train=train, curve=curve)
    quality = quality.model_copy(update={"outliers": _outliers(context, rated, model)})
    save_rated(store, run, rated)
    save_latent_traversal(store, run, latent_traversal(model, rated))
    save_quality(store, run, quality)
    return _summary(quality)


def _sampled(context: Context, stars: int) -> pa.Table | None:
    """New stars to be rated; None where the run was asked for no prior."""
    if context.config.prior.kind == "none":
        return None
    request = SampleRequest.of(context.store, context.manifest, context.config.release, stars)
    draw = SampleBlocks(context.store, context.run, request, context.config.cluster.device)
    return pa.concat_tables(context.map(draw, range(blocks_of(stars)), Task("sample", unit="blocks")))


def _outliers(context: Context, rated: Rated, model: StarModel) -> Outliers:
    """The rated stars that are like no other."""
    prior = load_prior_cached(context.store, context.run, context.key("prior")) if context.config.prior.kind != "none" else None
    found = outliers_of(Stars(rated.real, rated.rebuilt, rated.latents), model, prior, OUTLIERS_SHOWN)
    return outliers_record(found, model)


def _summary(quality: Quality) -> EvaluateResult:
    """The numbers to quote, for manifest and terminal."""
    result: JsonObject = {"test_stars": quality.stars}
    for name, rating in quality.reconstruction.items():
        summaries = (("median", rating.headline.beside_position.median), ("ks", rating.headline.beside_position.ks))
        numbers = {f"{number}_{of}": summary.to_json()[of] for number, summary in summaries for of in ("mean", "worst")}
        if quality.uncertainty:
            errors = quality.uncertainty.reconstruction[name].median.to_json()
            numbers |= {f"median_{of}_error": error for of, error in errors.items()}
        result[name] = numbers
    for name, stars in (("two_sample", REBUILT), ("sampled", SAMPLED)):
        if comparison := quality.comparison(stars):
            result |= {f"{name}_auc": comparison.auc, f"{name}_interval": list(comparison.interval)}
    if quality.storage:
        result["bytes_a_star"] = quality.storage.bytes_a_star
    return EvaluateResult.model_validate(result)


def _is_present(context: Context) -> bool:
    return rating_is_whole(context.store, context.run, context.config.release, context.key("evaluate"))


WORK = StageWork(
    _inputs, _make, EvaluateResult, present=_is_present, files=lambda context: (context.run.quality, context.run.rated)
)  # fmt: skip
