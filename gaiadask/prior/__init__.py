"""The prior: what new stars are drawn from, fitted once a model is trained and its weights are fixed.

    p(position, null mask)                        counts of train stars in HEALPix pixels            `sky_density`
    p(latents | position, null mask)              a neural spline flow on the encoded stars          `flows`, `density_fit`
    p(residual | latents, position, null mask)    the same of transformed values minus decoded ones

Without the last one, samples of few latents lie near a sheet of as many dimensions as there are latents, which is all that a decoder
can represent, and any classifier finds it. A model that is a flow is a density of stars itself: it is trained on as p(values | position,
null mask), in the place of both (`flow_fit`). prior.kind "free" is one flow of all transformed values, without latents.
"""

from gaiadask.prior.artifact import MakePrior, Prior, load_prior, load_prior_cached, prior_identity, prior_is_whole, save_prior
from gaiadask.prior.card import PriorCard, PriorResult
from gaiadask.prior.fitting import Gathered, GatherPrior, PriorStars, fit_prior, save_gathered
from gaiadask.prior.sky_density import Cone, SkyCounts, SkyDensity

__all__ = [
    "Cone",
    "GatherPrior",
    "Gathered",
    "MakePrior",
    "Prior",
    "PriorCard",
    "PriorResult",
    "PriorStars",
    "SkyCounts",
    "SkyDensity",
    "fit_prior",
    "load_prior",
    "load_prior_cached",
    "prior_identity",
    "prior_is_whole",
    "save_gathered",
    "save_prior",
]
