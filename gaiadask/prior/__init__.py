"""What new stars are drawn from, fitted once a model is trained and its weights are fixed:

    p(position, null mask)              counts of train stars in HEALPix pixels       `places`
    p(latents | position, null mask)    a neural spline flow on the encoded stars     `flows`
    p(residual | latents, …)            the same of transformed values minus decoded ones

The last is what makes samples of few latents look like stars: what a decoder gives lies near a sheet of as many dimensions
as there are latents, and anything that looks for it finds it. `free` is the same without latents: one flow of all values.
"""

from gaiadask.prior.artifact import Prior, load_prior, load_prior_cached, make_prior, prior_identity, save_prior
from gaiadask.prior.fitting import GatherPrior, PriorStars, fit_prior
from gaiadask.prior.places import Cone, Places, SkyCounts

__all__ = [
    "Cone",
    "GatherPrior",
    "Places",
    "Prior",
    "PriorStars",
    "SkyCounts",
    "fit_prior",
    "load_prior",
    "load_prior_cached",
    "make_prior",
    "prior_identity",
    "save_prior",
]
