"""The configuration and its sections, as frozen pydantic models; the sections [model] and [cluster] are in modules
of their names.

Each option, its default and its meaning stand only there and here: `gaiadask init` writes these fields as a commented TOML, and
Prefect's parameters are the same models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator
from pydantic_core import PydanticKnownError

from gaiadask.archive.kinds import ARCHIVES
from gaiadask.config.cluster import ClusterConfig
from gaiadask.config.model import ModelConfig
from gaiadask.config.presets import (
    BITS_A_LATENT,
    LATENTS,
    MOST_BITS,
    Schedule,
    latent_bits,
    set_beside_model,
)
from gaiadask.config.section import NOT_IN_KEY, ColumnChoice, PublicUri, Section
from gaiadask.errors import known_names
from gaiadask.release.column import DEC, KEY_COLUMNS, RA
from gaiadask.release.release import DEFAULT_RELEASE, Release, release_named
from gaiadask.uris import absolute_uri


class ArchiveConfig(Section):
    """Where stars come from."""

    kind: str = Field(
        "tap",
        description="tap (ADQL over a TAP service), files, or mock (stars of a simulated sky)",
        json_schema_extra={"enum": list(ARCHIVES)},
    )
    url: PublicUri = Field("https://gea.esac.esa.int/tap-server/tap", description="tap: address of the service")
    table: str = Field("gaiadr2.gaia_source", description="tap: the table")
    uris: tuple[PublicUri, ...] = Field(
        (),
        description="files: paths, URIs and globs; parquet, CSV, csv.gz, ECSV, VOTable or FITS; a relative path starts at this file's folder",
    )
    max_jobs: int = Field(4, ge=1, description="tap: jobs at once, over the whole cluster")
    # A chunk is the unit of work and of repetition: some minutes of an archive. Memory does not depend on it. Not tuned.
    chunk_rows: int = Field(
        500_000,
        ge=1,
        description="target number of rows in a chunk (files: of the archive's bulk files; each other file is one chunk)",
    )
    # One that breaks is asked for again from its beginning, and twice its size is on local scratch while it is read. Not tuned.
    chunk_mb: int = Field(
        256,
        ge=1,
        description="tap: a chunk with a larger answer, MB, is cut into smaller ones; an answer is on local scratch while it is read",
    )
    # With the back-off between them, some minutes: a service that restarts is back by then. Not tuned.
    attempts: int = Field(
        6,
        ge=1,
        description="tap: how often a chunk is requested before the run reports it as failed; the next start requests it again",
    )
    timeout_s: float = Field(
        60.0, gt=0, description="tap, and files over http: seconds without data after which a request is repeated"
    )
    mock_stars: int = Field(1_000_000, ge=1, description="mock: number of stars on the simulated sky")
    mock_seed: int = Field(0, ge=0, description="mock: seed of the simulated sky")

    @field_validator("uris")
    @classmethod
    def _absolute(cls, uris: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(absolute_uri(uri) for uri in uris)

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in ARCHIVES:
            *first, last = map(repr, ARCHIVES)
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(first)} or {last}"})
        return kind


class SelectionConfig(Section):
    """Which columns and which stars."""

    columns: ColumnChoice = Field(
        "seed25", description="seed16, seed25, all, or a list of columns; source_id, ra and dec are always included"
    )
    not_null: ColumnChoice = Field(
        "seed25", description="a preset or a list: only stars with a value in all of these columns; []: also stars with nulls"
    )
    where: str = Field("", description="an additional condition: ADQL for tap, SQL (evaluated by duckdb) for files and mock")
    limit: int = Field(
        0,
        ge=0,
        description="0: all stars; else so many, those of smallest random_index (tap) or hash of source_id: a fair sample of the sky",
    )

    @property
    def release(self) -> Release:
        """The data release whose columns the names are of."""
        return release_named(DEFAULT_RELEASE)

    @property
    def column_names(self) -> tuple[str, ...]:
        """What is fetched: source_id, ra, dec, then the chosen columns in the table's order."""
        chosen = {*KEY_COLUMNS, *self.release.resolve(self.columns)}
        return tuple(name for name in self.release.columns if name in chosen)

    @property
    def not_null_names(self) -> tuple[str, ...]:
        """Columns in which every selected star has a value."""
        return self.release.resolve(self.not_null)


class CatalogueConfig(Section):
    """The catalogue's files."""

    # At most some thousands of files for the whole sky (design: few files, row groups for streaming).
    partition_mb: int = Field(200, ge=1, description="target size of a partition file, MB")
    # None by default: no stage reads it. It costs a few percent of the ingest's time (docs/store.md).
    margin_arcsec: float = Field(
        0.0,
        ge=0,
        le=600,
        allow_inf_nan=False,
        description="width of the margin, the stars of neighbouring partitions near each partition's edge, with which LSDB's cross-match up to "
        "this radius is complete; 0: none",
    )


class LatentConfig(Section):
    """How precisely latents are stored."""

    # Chosen on the curve in docs/bits.md: with fewer, rounding is most of the error.
    bits: int = Field(
        BITS_A_LATENT * LATENTS,
        ge=0,
        description="bits of a star, over all latents, which are stored as integers of 8 or 16 bits; each latent gets as many as it is "
        f"worth, and training knows of the rounding; default {BITS_A_LATENT} for each latent with preset vae; 0, the default of the "
        "others (and with free_bits): latents are float32",
    )


class TrainingConfig(Section):
    """The optimisation."""

    # With eight latents 39 M stars shown rebuild no better than 20 M (docs/quality.md); wider models have more to learn.
    rows_seen: int = Field(
        30_000_000, ge=1, description="the budget: stars shown to the network, over as many passes as that takes"
    )
    # Twelve validations in the default budget. Not tuned.
    validate_every_rows: int = Field(2_500_000, ge=1, description="stars shown between validations, each with a checkpoint")
    # Not tuned: large enough to keep one thread busy, small enough for 15,000 steps in the default budget.
    batch_rows: int = Field(2_048, ge=2, description="stars in a batch, over all ranks")
    # Better than 5e-3 at 4 and 6 latents in the same budget (validation stars).
    learning_rate: float = Field(1e-2, gt=0, description="peak of the one-cycle schedule, first rate of the others")
    schedule: Schedule = Field(
        "one-cycle",
        description="learning rate: one-cycle (a short rise, then half a cosine down to 0), constant, step (multiplied by decay_factor "
        "after each decay_every) or exponential (the same decay, continuously)",
    )
    decay_factor: float = Field(0.5, gt=0, le=1, description="step, exponential: factor of the learning rate")
    decay_every: float = Field(
        0.1, gt=0, le=1, description="step, exponential: interval between two decays, as a share of the budget"
    )
    # A shorter memory than Adam's 0.999, since the budget has few steps. Not tuned.
    second_moment_decay: float = Field(0.98, gt=0, lt=1, description="beta2 of Adam")
    gradient_norm: float = Field(1.0, ge=0, description="larger gradients are scaled down to this norm; 0: no limit")
    # Not tuned (docs/kl.md: why there is one).
    kl_warmup: float = Field(0.1, ge=0, le=1, description="share of the budget over which the KL weight grows from 0 (vae)")
    # Not tuned: two fifths of the default budget; one-cycle improves to its end, so it rarely stops anything.
    patience: int = Field(5, ge=1, description="validations without improvement before training stops early")
    # A median over 100,000 stars is known to about 0.4 % of the spread.
    validation_rows: int = Field(100_000, ge=1, description="validation stars used at each validation (those of smallest hash)")
    # 16 bits a value, an error or a coordinate: 56 bytes a star of 25 columns, some 250 of 94. So .6 to 2.5 GB, within the memory of a
    # worker. Not tuned.
    buffer_rows: int = Field(
        10_000_000,
        ge=1,
        description="train stars that a rank holds in memory, at 50 to 250 bytes each; where there are more than all ranks hold, each "
        "pass reads them again and mixes them in a buffer of so many",
    )
    ranks: Annotated[int, NOT_IN_KEY] = Field(
        0,
        ge=0,
        description="processes that train together, one a worker; 0: one a GPU where workers have GPUs, else one a worker, and one "
        "with batch_norm",
    )
    threads: Annotated[int, NOT_IN_KEY] = Field(
        0, ge=0, description="torch threads a rank; 0: (cores - 1) / ranks on the host, at least 1"
    )
    tensorboard: Annotated[bool, NOT_IN_KEY] = Field(
        False, description="write TensorBoard event files beside metrics.jsonl (needs the extra `tensorboard`)"
    )
    seed: int = Field(0, ge=0, description="seed of the first weights and of the order of stars")


class PriorConfig(Section):
    """What new stars are drawn from; fitted after training, on train stars only, with one thread."""

    kind: Literal["latent", "gaussian", "free", "none"] = Field(
        "latent",
        description="latent: flows of p(latents) and of p(residual given latents), with preset flow the flow itself, trained on to know what is null before it draws values; gaussian: latents from N(0, 1), evenly between -1 and 1 where they are rounded, and no residual, for "
        "comparison, or, with preset flow, from the flow itself, which does not know that stars that lack values are others; free: a flow of the transformed columns, without the model's latents; none: no new stars",
    )
    residuals: bool = Field(
        True,
        description="latent: learn and draw p(residual given latents); without it samples lack the scatter the decoder cannot represent. Preset flow needs none",
    )
    # The numbers of [prior] are a compromise of minutes against samples that a classifier tells apart; only `residuals` and `kind`
    # were compared (docs/quality.md).
    stars: int = Field(1_000_000, ge=100, description="train stars that the flows are fitted to (those of smallest hash)")
    validation_stars: int = Field(
        20_000, ge=100, description="validation stars that decide when a fit stops (those of smallest hash)"
    )
    rows_seen: int = Field(3_000_000, ge=1, description="the budget of each flow, in stars shown")
    max_seconds: float = Field(
        0.0,
        ge=0,
        description="0: no limit; else a fit also ends after so many seconds (the result then depends on the speed of the machine)",
    )
    batch_rows: int = Field(512, ge=2, description="stars in a batch")
    learning_rate: float = Field(1e-2, gt=0, description="peak of the one-cycle schedule")
    transforms: int = Field(3, ge=1, description="autoregressive spline transformations, one after the other")
    hidden: tuple[PositiveInt, ...] = Field(
        (128, 128), min_length=1, description="widths of the hidden layers of each transformation's network"
    )
    bins: int = Field(8, ge=2, description="pieces of each spline")
    patience: int = Field(3, ge=1, description="validations (ten in a budget) without improvement before a fit stops early")
    seed: int = Field(0, ge=0, description="seed of the first weights and of the order of stars")


class TuneConfig(Section):
    """Architecture search by successive halving: which options of [model] and [training] rebuild validation stars best."""

    model: dict[str, tuple[Any, ...]] = Field(
        {}, description="values to try for options of [model], as { hidden = [[256, 256], [512]], latents = [6, 8] }"
    )
    training: dict[str, tuple[Any, ...]] = Field(
        {}, description="values to try for options of [training], as { learning_rate = [1e-3, 5e-3] }"
    )
    candidates: int = Field(0, ge=0, description="0: every combination of these values; else so many combinations, drawn at random")
    seed: int = Field(0, ge=0, description="seed of that draw")
    rows_seen: int = Field(1_000_000, ge=1, description="stars shown to each candidate in the first rung")
    factor: int = Field(
        3, ge=2, description="the best 1/factor of a rung go on to the next one, which has factor times as many stars"
    )
    validation_rows: int = Field(
        20_000, ge=100, description="validation stars that candidates are scored on (those of smallest hash)"
    )

    @model_validator(mode="after")
    def _known(self) -> TuneConfig:
        refused = {
            "model": {"columns": "errors in other columns do not compare"},
            "training": dict.fromkeys(
                ("rows_seen", "patience", "validate_every_rows"), "the rungs say how long a candidate trains"
            ),
        }
        sections: tuple[tuple[str, dict[str, tuple[Any, ...]], type[Section]], ...] = (
            ("model", self.model, ModelConfig),
            ("training", self.training, TrainingConfig),
        )
        for section, values, options in sections:
            for option, tried in values.items():
                if option not in options.model_fields:
                    raise ValueError(f"{section}.{option}: unknown option; {known_names([option], options.model_fields)}")
                if option in refused[section]:
                    raise ValueError(f"{section}.{option} cannot be searched: {refused[section][option]}")
                if not tried:
                    raise ValueError(f"{section}.{option}: no value to try; leave it out, or list some")
        return self


class QualityConfig(Section):
    """How the result is rated, on test stars only."""

    rows: int = Field(200_000, ge=100, description="test stars rated (those of smallest hash)")
    # What a classifier can tell grows with its stars: all published AUCs are of this size.
    two_sample_rows: int = Field(
        20_000, ge=100, description="stars on each side of the two-sample tests; AUCs of other sizes cannot be compared"
    )
    two_sample_seeds: int = Field(3, ge=1, description="repetitions of the two-sample tests, which give their spread")


class CodecConfig(Section):
    """The compressed catalogue: every value within a bound of the catalogue's."""

    bound_sigma: float = Field(
        0.1,
        ge=0,
        le=5,
        description="how far a value may be off, in units of its own catalogue error; errors by a tenth of it, and what has no error by as much of its accuracy; 0: every value exact",
    )
    bounds: dict[str, float] = Field(
        {},
        description="of single columns in place of it, as { parallax = 0.01, teff_val = 1.0 }: in units of the error where there is one, relative for errors and radius, else in the column's unit; 0: exact",
    )
    stars: int = Field(60_000, ge=1_000, description="train stars that the tables are fitted to (those of smallest hash)")

    @field_validator("bounds")
    @classmethod
    def _not_negative(cls, bounds: dict[str, float]) -> dict[str, float]:
        for name, bound in bounds.items():
            if not 0 <= bound < float("inf"):
                raise ValueError(f"codec.bounds.{name} is {bound}: expected a number of 0 (exact) or more")
        return bounds


class Config(Section):
    """A whole configuration."""

    name: str = Field("dr2", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run")
    store: PublicUri = Field("./store", min_length=1, description="any fsspec URI; a relative path starts at this file's folder")
    archive: ArchiveConfig = ArchiveConfig()
    selection: SelectionConfig = SelectionConfig()
    catalogue: CatalogueConfig = CatalogueConfig()
    model: ModelConfig = ModelConfig()
    latent: LatentConfig = LatentConfig()
    training: TrainingConfig = TrainingConfig()
    prior: PriorConfig = PriorConfig()
    tune: TuneConfig = TuneConfig()
    quality: QualityConfig = QualityConfig()
    codec: CodecConfig = CodecConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def release(self) -> Release:
        """The data release that the stars are of."""
        return self.selection.release

    @property
    def model_columns(self) -> tuple[str, ...]:
        """Encoded columns, in the preset's or the list's order; identifiers and texts are carried, not encoded."""
        chosen = self.selection.column_names if self.model.columns == "all" else self.release.resolve(self.model.columns)
        return tuple(name for name in chosen if self.release.columns[name].is_encodable)

    @field_validator("store")
    @classmethod
    def _absolute(cls, store: str) -> str:
        return store if "://" in store else str(Path(store).expanduser().resolve())

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, values: Any) -> Any:
        """The preset of [model] has its own defaults for [training] and [prior], and with the latents one for [latent]."""
        model = values.get("model", {}) if isinstance(values, dict) else None
        model = model.model_dump() if isinstance(model, ModelConfig) else model
        if not isinstance(model, dict):
            return values
        preset = str(model.get("preset", "vae"))
        defaults = set_beside_model(preset) | {"latent": {"bits": latent_bits(model)}}
        for section, options in defaults.items():
            given = values.get(section, {})
            given = given.model_dump(exclude_unset=True) if isinstance(given, Section) else given
            if options and isinstance(given, dict):
                values = {**values, section: {**options, **given}}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        unweighted = [c for c in self.model.column_weights if c not in self.model_columns]
        if unweighted:
            raise ValueError(f"model.column_weights names {unweighted}, which model.columns does not encode")
        if self.training.ranks > 1 and self.model.batch_norm != "none":
            raise ValueError(
                f"training.ranks is {self.training.ranks}, but model.batch_norm = {self.model.batch_norm!r} needs each batch whole: use "
                "training.ranks = 1, or batch_norm = 'none'"
            )
        self._check_bits()
        self._check_bounds()
        missing = [c for c in self.model_columns if c not in self.selection.column_names]
        if missing:
            raise ValueError(f"model.columns asks for {missing}, which selection.columns does not fetch: add them there")
        mock = self.release.mock_columns
        lacking = [c for c in (*self.selection.column_names, *self.selection.not_null_names) if c not in mock]
        if self.archive.kind == "mock" and lacking:
            raise ValueError(
                f"mock stars (archive.kind 'mock') have no {', '.join(dict.fromkeys(lacking))}: choose selection.columns and "
                f"not_null among {', '.join(mock)}, or another kind"
            )
        if self.archive.kind == "files" and not self.archive.uris:
            raise ValueError("archive.kind is 'files' but archive.uris is empty: name the files")
        return self

    def _check_bits(self) -> None:
        bits, latents = self.latent.bits, self.model.latents
        if not bits:
            return
        if self.model.preset == "flow":
            self._check_bits_of_a_flow()
            return
        if self.model.preset != "vae" or self.model.free_bits:
            which = f"preset {self.model.preset!r}" if self.model.preset != "vae" else "model.free_bits"
            raise ValueError(
                f"latent.bits = {bits} does not go with {which}: use latent.bits = 0, or preset 'vae' without free bits"
            )
        if not latents <= bits <= MOST_BITS * latents:
            few = bits < latents
            raise ValueError(
                f"latent.bits = {bits} is too {'small' if few else 'large'} for model.latents = {latents}: expected {latents} to "
                f"{MOST_BITS * latents}, 1 to {MOST_BITS} for each. Use {'fewer' if few else 'more'} latents, or "
                "`gaiadask init --bits`, which chooses their number"
            )

    def _check_bits_of_a_flow(self) -> None:
        """Refuse what no stars can make fit; how many values there are exactly is known where the stars are (`new_network`)."""
        columns, bits = self.model_columns, self.latent.bits
        beside = {RA, DEC, *(self.release.derivable(columns) if self.model.derive else ())}  # its position is always a condition
        least = sum(column not in beside for column in columns)
        most = MOST_BITS * len(columns)  # where no formula holds
        if not least <= bits <= most:
            raise ValueError(
                f"latent.bits = {bits} is too {'small' if bits < least else 'large'} for the {least} free columns of preset 'flow': expected "
                f"{least} to {MOST_BITS * least}, 1 to {MOST_BITS} for each, or 0 for latents that are not rounded"
            )

    def _check_bounds(self) -> None:
        fetched = self.selection.column_names
        if unknown := [name for name in self.codec.bounds if name not in fetched]:
            raise ValueError(
                f"codec.bounds: selection.columns does not fetch {', '.join(unknown)}: {known_names(unknown, fetched)}"
            )
