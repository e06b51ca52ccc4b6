"""Every option is in the key of what depends on it, or changes no result; which do not is listed here, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_run import make_catalogue, make_run, small_config

from gaiadask.archive.base import open_archive
from gaiadask.config.cluster import ClusterConfig
from gaiadask.config.sections import Config
from gaiadask.ingest_plan import selection_of
from gaiadask.keys import digest
from gaiadask.stages.ingest import IngestResult
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

# Values that differ from the small run's and are allowed beside its other options.
OTHER: dict[str, Any] = {
    "archive.url": "http://localhost/tap", "archive.table": "gaiadr2.part", "archive.mock_seed": 1,
    "selection.columns": "seed16", "selection.not_null": ("parallax",), "selection.where": "parallax > 1", "selection.limit": 100,
    "model.preset": "keras-2020", "model.columns": ("ra", "dec", "parallax"), "model.hidden": (16,), "model.position": "input",
    "model.scaling": "standard", "model.loss": "mse", "model.column_weights": {"parallax": 2.0}, "model.activation": "relu",
    "model.batch_norm": "after", "training.schedule": "constant", "prior.kind": "gaussian",
    "prior.hidden": (8,), "tune.model": {"latents": (3, 4)}, "tune.training": {"seed": (1, 2)},
    "codec.bounds": {"teff_val": 1.0}, "cluster.address": "tcp://localhost:1", "cluster.device": "cpu",
    "cluster.kind": "local", "cluster.memory": "8GB", "cluster.walltime": "01:00:00", "cluster.directives": ("-x a",), "cluster.environment_from": ("s3",), "cluster.prologue": ("true",),
    **{f"cluster.{option}": "other" for option in ("file", "queue", "account", "interface", "logs", "image", "namespace", "tls_ca", "tls_cert", "tls_key")},
    "archive.kind": None, "archive.uris": ("/nowhere/a.csv",),
}  # fmt: skip
# Of what no result depends on, why.
TRANSPORT = {
    "archive.max_jobs": "how many chunks at once",
    "archive.chunk_rows": "the rows are the same however they are cut: the catalogue's id is that of the rows",
    "archive.chunk_mb": "the same",
    "archive.attempts": "how often it is tried",
    "archive.timeout_s": "how long it is waited",
    "catalogue.margin_arcsec": "a copy of some stars beside the catalogue, which no stage reads",
    "training.threads": "sums of many threads may differ in their last bits, as those of another machine: models are told by weights",
    "training.ranks": "how many compute: the same stars in the same batches, and sums that may differ in their last bits",
    "training.tensorboard": "a copy of metrics.jsonl",
    "cluster.address": "where it is computed",
    "cluster.workers": "how many compute",
    **{
        f"cluster.{option}": "where and how workers are started"
        for option in ClusterConfig.model_fields
        if option not in ("address", "workers", "device")
    },
    "cluster.device": "what computes: the last bits may differ, models are told by their weights",
}
# Of a kind of archive that the small run does not have.
ELSEWHERE = {"archive.url": "tap", "archive.table": "tap", "archive.uris": "files"}


def keys(config: Config) -> tuple[str, ...]:
    """The parts of all stages' keys that come from the configuration."""
    selection = selection_of(config, open_archive(config.archive, config.selection))
    sections = (config.model, config.latent, config.training, config.prior, config.quality, config.tune, config.codec)
    return selection.key, *(digest(section.for_key()) for section in sections)


def options() -> list[str]:
    config = Config()
    sections = {name: type(getattr(config, name)) for name in Config.model_fields if name not in ("name", "store")}
    return [f"{section}.{option}" for section, kind in sections.items() for option in kind.model_fields]


def other(config: Config, option: str) -> Config | None:
    """The configuration with another value of one option; None where there is no other."""
    section, name = option.split(".")
    value = getattr(getattr(config, section), name)
    if option in OTHER:
        value = OTHER[option]
        if value is None:
            return None
    elif isinstance(value, bool):
        value = not value
    elif isinstance(value, int):
        value += 1
    elif isinstance(value, float):
        value = value / 2 if value else 0.5
    changed = getattr(config, section).model_copy(update={name: value})
    assert getattr(changed, name) != getattr(getattr(config, section), name), f"{option}: name another value in OTHER"
    return config.model_copy(update={section: changed})


@pytest.mark.parametrize("option", options())
def test_an_option_changes_a_key_or_is_known_to_change_no_result(option: str) -> None:
    config = small_config("unused")
    if option in ELSEWHERE:
        kind = ELSEWHERE[option]
        config = config.model_copy(update={"archive": config.archive.model_copy(update={"kind": kind})})
        if kind == "files":  # what is in the key is the state of the files that it names
            return
    changed = other(config, option)
    if changed is None:
        return
    assert (keys(changed) != keys(config)) == (option not in TRANSPORT)


def test_what_is_transport_is_an_option() -> None:
    assert TRANSPORT.keys() | OTHER.keys() <= set(options())


@pytest.mark.slow
def test_how_rows_travel_does_not_change_the_catalogue(tmp_path: Path) -> None:
    archive = {"mock_stars": 2_000, "chunk_rows": 700}
    first = make_catalogue(small_config(tmp_path / "a", archive=archive))
    for option in ("max_jobs", "chunk_rows", "chunk_mb", "attempts", "timeout_s"):
        changed = {**archive, option: 333}
        assert make_catalogue(small_config(tmp_path / option, archive=changed)).id == first.id


@pytest.mark.slow
def test_the_buffer_of_the_shuffle_makes_another_model_under_another_key(tmp_path: Path) -> None:
    archive, training = {"mock_stars": 3_000}, {"rows_seen": 6_000, "validate_every_rows": 3_000, "batch_rows": 100}
    weights, entries = set(), set()
    for rows in (600, 2_000_000):
        config = small_config(tmp_path / str(rows), archive=archive, training={**training, "buffer_rows": rows})
        make_run(config, "ingest", "statistics", "train")
        store, run = Store(config.store), RunPaths(config.name)
        weights.add(store.sha256(run.weights))
        entries.add(Manifest(store, run).require("train").key)
        assert Manifest(store, run).result("ingest", IngestResult).rows == 3_000
    assert len(weights) == len(entries) == 2
