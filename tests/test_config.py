"""The configuration: one that is wrong is refused by name; one that is written loads as it was."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from gaiadask.config.model import ModelConfig
from gaiadask.config.presets import MODEL_PRESETS, PRIOR_PRESETS, TRAINING_PRESETS
from gaiadask.config.section import Section
from gaiadask.config.sections import Config, TrainingConfig
from gaiadask.config.toml import dump_toml, load_config, only_given, parse_config
from gaiadask.errors import ConfigurationError
from gaiadask.keys import digest
from gaiadask.release.dr2 import SEED16, SEED25


def sections() -> dict[str, type[BaseModel]]:
    found: dict[str, type[BaseModel]] = {"": Config}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found[name] = field.annotation
    return found


def options() -> list[tuple[str, str]]:
    names = sections()
    return [(section, option) for section, model in names.items() for option in model.model_fields if option not in names]


@pytest.mark.parametrize(("section", "option"), options())
def test_every_option_is_described_where_init_writes_it(section: str, option: str) -> None:
    description = sections()[section].model_fields[option].description
    assert description
    written = dump_toml(Config())
    assert f"# {description}" in written
    # What the preset sets is there too, as a comment.
    assert f"\n{option} = " in f"\n{written}" or f"\n# {option} = " in written


def test_every_section_has_a_docstring() -> None:
    for name, model in sections().items():
        assert model.__doc__, name
        assert model.model_config["frozen"], name
        assert model.model_config["extra"] == "forbid", name


def test_the_defaults_are_those_of_the_design() -> None:
    config = Config()
    assert (config.name, config.archive.kind, config.archive.table, config.archive.max_jobs) == (
        "dr2",
        "tap",
        "gaiadr2.gaia_source",
        4,
    )
    assert config.archive.url == "https://gea.esac.esa.int/tap-server/tap"
    assert (config.selection.columns, config.selection.not_null, config.selection.limit) == ("seed25", "seed25", 0)
    assert (config.model.preset, config.model.columns, config.model.latents) == ("vae", "seed16", 8)
    assert (config.training.rows_seen, config.training.validate_every_rows, config.training.threads) == (30_000_000, 2_500_000, 0)
    assert (config.catalogue.partition_mb, config.quality.rows, config.cluster.address) == (200, 200_000, "")
    assert set(config.selection.column_names) == {"source_id", *SEED25}
    assert config.model_columns == SEED16


# Round trip ----------------------------------------------------------------------------------------------------------
text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(
    where=text,
    uris=st.lists(text, min_size=1, max_size=3),
    seed=st.integers(0, 2**40),
    rate=st.floats(1e-9, 10),
    hidden=st.lists(st.integers(1, 999), max_size=4),
    comments=st.booleans(),
)
def test_what_is_written_loads_as_it_was(
    where: str, uris: list[str], seed: int, rate: float, hidden: list[int], comments: bool
) -> None:
    config = parse_config(
        {
            "store": "/somewhere",
            "archive": {"kind": "files", "uris": uris, "mock_seed": seed},
            "selection": {"where": where, "columns": ["parallax", "teff_val"], "not_null": []},
            "model": {"columns": ["parallax", "teff_val"], "hidden": hidden},
            "training": {"learning_rate": rate},
        }
    )
    assert parse_config(tomllib.loads(dump_toml(config, comments=comments))) == config


def test_a_file_may_say_little(tmp_path: Path) -> None:
    path = tmp_path / "gaia.toml"
    path.write_text('[archive]\nkind = "mock"\n')
    assert load_config(path) == Config(archive={"kind": "mock"}, store=str(tmp_path / "store"))  # type: ignore[arg-type]


# The store -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("./store", "{folder}/store"),
        ("../elsewhere", "{parent}/elsewhere"),
        ("/data/store", "/data/store"),
        ("s3://bucket/store", "s3://bucket/store"),
        ("file:///data/store", "file:///data/store"),
    ],
)
def test_a_relative_store_counts_from_the_files_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, found: str
) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "gaia.toml").write_text(f'store = "{told}"\n')
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/gaia.toml").store == found.format(folder=folder, parent=tmp_path)


def test_a_store_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "gaia.toml").write_text('store = "~/store"\n')
    assert load_config(tmp_path / "gaia.toml").store == str(tmp_path / "store")


def test_overrides_replace_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "gaia.toml"
    path.write_text('name = "a"\n')
    assert load_config(path, name="b").name == "b"
    assert load_config(path).name == "a"


# Presets -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("preset", MODEL_PRESETS)
def test_a_preset_is_a_set_of_defaults_that_options_override(preset: str) -> None:
    config = parse_config({"model": {"preset": preset}})
    for section, presets in ((config.model, MODEL_PRESETS), (config.training, TRAINING_PRESETS), (config.prior, PRIOR_PRESETS)):
        for option, field in type(section).model_fields.items():
            expected = {"preset": preset, **presets.get(preset, {})}.get(option, field.default)
            assert getattr(section, option) == expected, option
    other = parse_config({"model": {"preset": preset, "hidden": [7]}, "training": {"learning_rate": 0.03}})
    assert (other.model.hidden, other.training.learning_rate) == ((7,), 0.03)
    assert other.model.model_dump(exclude={"hidden"}) == config.model.model_dump(exclude={"hidden"})
    for comments in (True, False):
        assert parse_config(tomllib.loads(dump_toml(other, comments=comments))).model == other.model
        assert parse_config(tomllib.loads(dump_toml(other, comments=comments))).training == other.training
    # As Prefect gives it: sections that are records already.
    records = Config(model=ModelConfig(preset=preset), training=TrainingConfig(learning_rate=0.03))  # type: ignore[arg-type]
    assert (records.model, records.training.learning_rate) == (config.model, 0.03)
    assert records.training.schedule == config.training.schedule


def test_what_init_writes_lets_the_preset_be_changed_alone() -> None:
    written = dump_toml(Config()).replace('preset = "vae"', 'preset = "keras-2020"')
    changed = parse_config(tomllib.loads(written))
    expected = parse_config({"model": {"preset": "keras-2020"}})
    assert (changed.model, changed.training) == (expected.model, expected.training)


@pytest.mark.parametrize("preset", MODEL_PRESETS)
def test_what_is_said_is_what_differs_from_the_preset(preset: str) -> None:
    # Each at its field's default, and for one of the presets at least not at the preset's.
    model = {"scaling": "quantile", "loss": "mse", "hidden": [256, 256, 256], "derive": True, "batch_norm": "none"}
    told = {"model": {"preset": preset, **(model if preset.endswith("2020") else {})}, "training": {"schedule": "one-cycle"}}
    config = parse_config(told)
    said = only_given(config)
    assert parse_config(said) == config
    assert said["model"].items() <= told["model"].items()
    assert said["training"].items() <= told["training"].items()
    # Where nothing is said, another preset is followed.
    bare = only_given(parse_config({"model": {"preset": preset}}))
    for other in MODEL_PRESETS:
        assert parse_config({**bare, "model": {"preset": other}}) == parse_config({"model": {"preset": other}})
    assert (bare["model"], bare["training"]) == ({"preset": preset}, {})


def test_latents_follow_the_columns_where_nothing_is_said() -> None:
    assert [parse_config({"model": {"columns": c}}).model.latents for c in ("seed16", "seed25", "all")] == [8, 16, 8]
    assert parse_config({"model": {"columns": "seed25", "latents": 12}}).model.latents == 12
    written = dump_toml(Config())
    assert "# latents = 8\n" in written
    written = written.replace('columns = "seed16"', 'columns = "seed25"')
    assert parse_config(tomllib.loads(written)).model.latents == 16
    assert only_given(parse_config({"model": {"columns": "seed25"}}))["model"] == {"preset": "vae", "columns": "seed25"}


def test_every_loss_fits_some_model() -> None:
    options = {"mse": {}, "weighted-mse": {"column_weights": {"pmra": 2.0, "ra": 0.5}}, "bce": {"scaling": "min-max"}}
    for loss, more in options.items():
        config = parse_config({"model": {"preset": "autoencoder", "loss": loss, **more}})
        assert config.model.loss == loss
        assert parse_config(tomllib.loads(dump_toml(config))).model == config.model


# What is wrong -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"nmae": "x"}, r"nmae: unknown option; did you mean name\? There are name, store, archive"),
        ({"model": {"latent": 8}}, r"model\.latent: unknown option; did you mean latents\? There are preset, columns, latents"),
        ({"model": {"latents": "eight"}}, r"model\.latents: .*integer.*\(found 'eight'\)"),
        ({"model": {"latents": 0}}, "model: latents = 0 goes with preset 'flow' alone"),
        (
            {"model": {"preset": "gan"}},
            r"model\.preset: .*'vae', 'flow', 'autoencoder', 'keras-2020' or 'pytorch-2020'.*found 'gan'",
        ),
        ({"model": {"loss": "mse"}}, r"model: .*loss = 'mse' is no likelihood.*preset 'autoencoder'"),
        ({"model": {"preset": "autoencoder", "loss": "bce"}}, r"model: .*loss = 'bce' takes values in 0..1, scaling = 'quantile'"),
        (
            {"model": {"preset": "autoencoder", "loss": "mse", "error_share": 0.5}},
            r"model: .*error_share sets the scale of a likelihood, loss = 'mse' has none",
        ),
        (
            {"model": {"preset": "autoencoder", "free_bits": 0.5}},
            r"model: .*free_bits belong to the KL term, which preset 'autoencoder'",
        ),
        (
            {"model": {"column_weights": {"pmra": 2.0}}},
            r"model: .*column_weights belong to loss = 'weighted-mse', not to 'hyperbolic'",
        ),
        (
            {"model": {"loss": "gaussian", "tail_from": 0.1}},
            r"model: .*tail_from belongs to loss = 'hyperbolic', not to 'gaussian'",
        ),
        ({"prior": {"hidden": []}}, r"prior\.hidden: .*at least 1 item"),
        ({"model": {"preset": "keras-2020", "linear_path": True}}, r"model: .*linear_path starts at the principal components"),
        ({"model": {"column_weights": {"pmra": 0.0}}}, r"model\.column_weights\.pmra: .*greater than 0"),
        (
            {"model": {"preset": "autoencoder", "loss": "weighted-mse", "column_weights": {"pm": 2.0}}},
            r"model\.column_weights names \['pm'\], which model\.columns does not encode",
        ),
        ({"training": {"schedule": "cosine"}}, r"training\.schedule: .*'one-cycle', 'constant', 'step' or 'exponential'"),
        ({"training": {"learning_rate": float("nan")}}, r"training\.learning_rate: .*finite"),
        ({"training": {"learning_rate": float("inf")}}, r"training\.learning_rate: .*finite"),
        ({"training": 3}, r"training: .*TrainingConfig \(found '3'\)"),
        ({"selection": {"columns": "seed17"}}, r"selection\.columns: .*unknown column preset 'seed17'.*seed16"),
        (
            {"selection": {"columns": ["parallaxe"]}},
            r"selection\.columns: .*unknown column\(s\) parallaxe: did you mean parallax\?",
        ),
        ({"selection": {"not_null": ["parallaxe"]}}, r"selection\.not_null: .*unknown column\(s\) parallaxe"),
        ({"model": {"columns": ["parallaxe"]}}, r"model\.columns: .*unknown column\(s\) parallaxe"),
        (
            {"selection": {"columns": ["parallax"]}, "model": {"columns": ["parallax", "pmra"]}},
            r"model\.columns asks for \['pmra'\], which selection\.columns does not fetch",
        ),
        ({"archive": {"kind": "files"}}, r"archive\.uris is empty: name the files"),
        ({"archive": {"kind": "ftp"}}, r"archive\.kind: .*'tap', 'files' or 'mock'"),
        ({"name": "../other"}, r"name: .*pattern"),
        ({"store": ""}, r"store: .*at least 1 character"),
        (
            {"selection": {"columns": "all"}, "model": {"columns": ["parallax", "duplicated_source", "phot_variable_flag"]}},
            r"model\.columns: \['phot_variable_flag'\] cannot be encoded: not a number",
        ),
        (
            {"archive": {"kind": "mock"}, "selection": {"columns": "all"}},
            r"have no solution_id, designation, ref_epoch, .*: choose selection\.columns and not_null among source_id, random_index, ra",
        ),
        ({"archive": {"kind": "mock"}, "selection": {"not_null": ["l", "ra"]}}, r"have no l: choose"),
        (
            {"model": {"preset": "flow"}, "latent": {"bits": 8}},
            r"latent\.bits = 8 is too small for the 9 free columns.*expected 9 to 144",
        ),
        ({"model": {"preset": "flow"}, "latent": {"bits": 1_000}}, r"latent\.bits = 1000 is too large for the 9 free columns"),
        (
            {"model": {"preset": "flow", "derive": False}, "latent": {"bits": 13}},
            r"latent\.bits = 13 is too small for the 14 free columns",
        ),
        ({"codec": {"bounds": {"paralax": 0.1}}}, r"codec\.bounds: .*does not fetch paralax: did you mean parallax\?"),
        ({"codec": {"bounds": {"l": 0.1}}}, r"codec\.bounds: selection\.columns does not fetch l: "),
    ],
)
def test_a_wrong_option_is_refused_by_name(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        parse_config(values, where="gaia.toml")
    assert str(caught.value).startswith("gaia.toml:")
    assert len(str(caught.value).splitlines()) == 2


def test_what_fits_together_is_taken() -> None:
    for bits in (0, 9, 144):
        assert parse_config({"model": {"preset": "flow"}, "latent": {"bits": bits}}).latent.bits == bits
    assert parse_config({"codec": {"bounds": {"ra": 0.1, "parallax": 0.0}}}).codec.bounds["ra"] == 0.1


def test_of_very_many_names_only_the_one_that_was_meant_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown column\(s\) parallaxe: did you mean parallax\? ") as caught:
        parse_config({"selection": {"columns": ["parallaxe"]}})
    assert "teff_val" not in str(caught.value)
    with pytest.raises(
        ConfigurationError, match=r"unknown column\(s\) parallaxe, xyzzy: did you mean parallax\? There are .*teff_val"
    ):
        parse_config({"selection": {"columns": ["parallaxe", "xyzzy"]}})


def test_identifiers_are_carried_not_encoded() -> None:
    config = parse_config({"selection": {"columns": "all"}, "model": {"columns": "all"}})
    assert {"source_id", "random_index"} <= set(config.selection.column_names)
    assert not {"source_id", "random_index"} & set(config.model_columns)


def test_all_encodes_every_number_and_flag_of_the_selection() -> None:
    config = parse_config(
        {"selection": {"columns": ["bp_rp", "l", "duplicated_source", "phot_variable_flag"]}, "model": {"columns": "all"}}
    )
    assert config.model_columns == ("ra", "dec", "duplicated_source", "bp_rp", "l")
    whole = parse_config({"selection": {"columns": "all"}, "model": {"columns": "all"}})
    assert len(whole.selection.column_names) == 94
    assert len(whole.model_columns) == 94 - 4 - 1  # identifiers; a text


def test_every_wrong_option_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_config({"nmae": "x", "model": {"latents": 0}, "training": {"rows_seen": "many"}})
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"name = \n", "not a TOML file"), (b"\xff\xfe", "not a TOML file"), (None, r"no such file.*gaiadask init")],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "gaia.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"gaia\.toml: {told}"):
        load_config(path)
    with pytest.raises(ConfigurationError, match="not a TOML file"):
        load_config(tmp_path)


# Keys ----------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@given(st.dictionaries(text, st.integers() | text | st.lists(st.integers(), max_size=3), max_size=5))
def test_a_digest_does_not_depend_on_order(value: dict[str, Any]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))
    assert digest(value) != digest({**value, "another option": 1})
