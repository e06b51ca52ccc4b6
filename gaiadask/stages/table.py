"""The stages of a run, in order: what each needs, what its result depends on, what it makes.

The CLI and the flows walk `STAGES` through `run_stages` and hold no logic of their own. A stage's key is a hash of
everything its result depends on: where the manifest holds the same key the stage is skipped; where it holds another one,
nothing is overwritten.
"""

from __future__ import annotations

from gaiadask.stages.context import Stage, _remove
from gaiadask.stages.encode import _drop_latent, _encode_inputs, _make_encode
from gaiadask.stages.evaluate import _evaluate_inputs, _make_evaluate
from gaiadask.stages.ingest import _drop_catalogue, _ingest_inputs, _make_ingest
from gaiadask.stages.prior import _make_prior, _prior_inputs
from gaiadask.stages.report import _make_report, _report_inputs
from gaiadask.stages.statistics import _make_statistics, _statistics_inputs
from gaiadask.stages.train import _make_train, _train_inputs

STAGES: tuple[Stage, ...] = (
    Stage("ingest", "fetch the selection into the catalogue", _ingest_inputs, _make_ingest, _drop_catalogue),
    Stage("statistics", "one pass over the catalogue", _statistics_inputs, _make_statistics, _remove(lambda r: r.statistics)),
    Stage(
        "train", "fit the autoencoder", _train_inputs, _make_train,
        _remove(lambda r: r.card, lambda r: r.model, lambda r: r.checkpoints, lambda r: r.metrics, lambda r: r.tensorboard),
    ),
    Stage("encode", "every star to its latents", _encode_inputs, _make_encode, _drop_latent),
    Stage(
        "prior", "learn what new stars are drawn from", _prior_inputs, _make_prior,
        _remove(lambda r: r.prior_card, lambda r: r.prior, lambda r: r.samples),
    ),
    Stage("evaluate", "rate the test stars and new ones", _evaluate_inputs, _make_evaluate, _remove(lambda r: r.quality, lambda r: r.rated)),
    Stage("report", "the page with the pictures", _report_inputs, _make_report, _remove(lambda r: r.report)),
)  # fmt: skip
