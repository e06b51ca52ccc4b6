"""How good a run is: test stars as published, as rebuilt from latents, and as PCA of the same width rebuilds them; new stars.

`rate` makes the `Quality` (see `gaiadask.quality.records`) that becomes quality.json.
"""

from __future__ import annotations

from gaiadask.quality.joint import density_coverage, hr_distance, nearer_to_train, sky_distance, velocity_dispersions
from gaiadask.quality.rating import Job, Rated, bytes_a_star, rate, run_job, two_sample_jobs
from gaiadask.quality.reconstruction import rate_columns, reconstruction, summarise
from gaiadask.quality.records import FEATURES, AucResult, Features, Quality
from gaiadask.quality.two_sample import two_sample_auc
from gaiadask.quality.yardsticks import gaussian_copula_sample, independent_columns_sample

__all__ = [
    "FEATURES",
    "AucResult",
    "Features",
    "Job",
    "Quality",
    "Rated",
    "bytes_a_star",
    "density_coverage",
    "gaussian_copula_sample",
    "hr_distance",
    "independent_columns_sample",
    "nearer_to_train",
    "rate",
    "rate_columns",
    "reconstruction",
    "run_job",
    "sky_distance",
    "summarise",
    "two_sample_auc",
    "two_sample_jobs",
    "velocity_dispersions",
]
