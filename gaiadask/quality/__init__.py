"""How good it is: test stars as published, as rebuilt from latents, and as PCA of the same width rebuilds them.

`rate` makes the dict that becomes quality.json. Its structure (each number may be null: undefined, or infinite because so
many values were lost; a name's ending tells the unit where the number has one):

    stars               test stars rated
    latents             numbers a star was encoded to
    reconstruction      "rebuilt" (the model) and, where there is one, "baseline" (PCA), each:
        headline            "beside_position" (every column but ra and dec: quote this one) and "all_columns", each:
            median, p90, p99    of |error| / IQR: {mean, worst, worst_column, columns} over the columns
            ks                  the same of the Kolmogorov-Smirnov distances
        position_error_arcsec   great-circle {median, p90, p99, max}; null where position is not among the columns
        columns             name -> (see `reconstruction.ColumnRating`)
            unit, derived       VOUnit; whether computed from other rebuilt columns
            stars, lost, invented   with a real value; real value without a rebuilt one; rebuilt value without a real one
                                (lost and invented ones count as infinite errors in every quantile below)
            iqr                 interquartile range of the real values, in `unit`
            error_over_iqr      {median, p90, p99, max} of |error| / IQR; ra's error is of ra cos(dec), the short way round
            error_in_sigma      |error| over the star's own catalogue error: {stars, median, p90, within_1_sigma,
                                beyond_3_sigma} (shares, 0 to 1); null where the catalogue has no error column of it
            error_arcsec        ra and dec only: {median, p90, p99, max}
            ks                  distance of real and rebuilt marginals, 0 to 1
    two_sample          null where there are too few stars; else
        rows_a_side, rows_asked, folds, seeds, max_iter     the settings, on which AUCs depend
        comparisons         "rebuilt", "baseline", "sampled" (new stars); yardsticks "real" (0.5), "copula", "independent"; each
            auc, spread, classifier     the headline: the largest of the classifiers' AUCs, and whose it is
            classifiers         "raw", "physics", "mlp" -> (`two_sample.AucResult`) {features, mean, spread (over seeds),
                                values (one a seed), rows, folds, inputs, seconds_per_fit}
    joint               each part null where its columns are not among the model's; else for "rebuilt", "baseline", "sampled"
        hr_diagram, sky     {distance, real_against_real, in_units_of_real (1 is right), stars, bins}
        velocity_dispersions    list of {bp_rp_from, bp_rp_to, stars, real_ra_km_s, made_ra_km_s, real_dec_km_s, made_dec_km_s}
        density_coverage    {density, coverage, neighbours, stars}; also for "real", the yardstick
    sampling            null without a prior; else of new stars beside all rated real ones
        stars               new stars
        ks                  {mean, worst, worst_column, columns} of the Kolmogorov-Smirnov distances, without ra and dec
        columns             name -> {ks, null_share_real, null_share_sampled}
        nearer_to_train     share of new stars whose nearest train star is nearer than the nearest of as many test stars: 0.5 is
                            right, more would be copying
    storage             of `bytes_a_star`, or null: {stars, row: {source_id, healpix_29, position, null_mask, latents}, model,
                        in_memory, on_disk, catalogue_on_disk, ratio}, in bytes a star
    skipped             part -> why it could not be rated

Whatever compares two sets of stars (two_sample, hr_diagram, sky, density_coverage) takes the real stars of one half against
the rebuilt stars of the other: a star beside its own rebuilt self would flatter, or mislead, every one of them.
"""

from __future__ import annotations

from gaiadask.quality.joint import density_coverage, hr_distance, nearer_to_train, sky_distance, velocity_dispersions
from gaiadask.quality.rating import Job, Rated, bytes_a_star, rate, run_job, two_sample_jobs
from gaiadask.quality.reconstruction import headline, rate_columns, reconstruction
from gaiadask.quality.two_sample import FEATURES, AucResult, Features, two_sample_auc
from gaiadask.quality.yardsticks import gaussian_copula_sample, independent_columns_sample

__all__ = [
    "FEATURES",
    "AucResult",
    "Features",
    "Job",
    "Rated",
    "bytes_a_star",
    "density_coverage",
    "gaussian_copula_sample",
    "headline",
    "hr_distance",
    "independent_columns_sample",
    "nearer_to_train",
    "rate",
    "rate_columns",
    "reconstruction",
    "run_job",
    "sky_distance",
    "two_sample_auc",
    "two_sample_jobs",
    "velocity_dispersions",
]
