"""The table of stages, in the order of a run; those on request last."""

from __future__ import annotations

from gaiadask.stages.stage import Stage

STAGES: tuple[Stage, ...] = (
    Stage("ingest", "Fetch the selection, chunk by chunk, into the store's catalogue.", deployed=True, outside=True),
    Stage("statistics", "One pass over the catalogue: moments and quantiles of every column.", needs=("ingest",)),
    Stage("train", "Fit the autoencoder to the train stars.", needs=("statistics",)),
    Stage("encode", "Every star to its latents.", needs=("train",), deployed=True),
    Stage("prior", "Learn what new stars are drawn from.", needs=("train", "encode")),
    Stage("evaluate", "Rate rebuilt test stars and new ones: quality.json.", needs=("encode", "prior")),
    Stage("report", "Draw report.html.", needs=("evaluate",), on_workers=False),
    Stage("decode", "Rebuild every star from its latents into parquet files.", needs=("encode",), on_request=True),
    Stage(
        "sample", "Draw new stars into parquet files. They are simulated, not measured.", needs=("prior",),
        on_request=True, deployed=True,
    ),
    Stage(
        "extend", "Every star's latents, reconstruction error and log-likelihood, as a HATS extension of the catalogue.",
        needs=("encode", "prior"), on_request=True,
    ),
    Stage(
        "compress", "The catalogue in a fraction of its bytes, every value within a bound of its own error.", needs=("ingest",),
        on_request=True, deployed=True,
    ),
    Stage(
        "decompress", "The compressed catalogue as a catalogue again, in a folder.", on_request=True, from_catalogue=False,
    ),
    Stage(
        "tune", "Search [model] and [training] for what rebuilds stars best: the candidates of [tune], by successive halving.",
        needs=("statistics",), on_request=True, deployed=True,
    ),
)  # fmt: skip
