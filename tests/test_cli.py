"""The command line: help that teaches, errors of one screen, exit codes; nothing half-made left behind."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import typer
from small_run import copied, fetched, small_config

from gaiadask import cli
from gaiadask.config.sections import Config
from gaiadask.config.toml import dump_toml, load_config
from gaiadask.stages.table import STAGES
from gaiadask.store.files import Store
from gaiadask.store.lease import Lease
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import INGEST_LEASE, RunPaths

COMMANDS = tuple(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
SCREEN = 25


class Outcome(NamedTuple):
    """Of a command: its exit code, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def gaiadask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """The command, in this process."""
    handlers, level = list(logging.getLogger().handlers), logging.getLogger("gaiadask").level

    def command(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["gaiadask", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = int(error.code or 0)
        return Outcome(code, *capsys.readouterr())

    yield command
    logging.getLogger().handlers[:] = handlers
    logging.getLogger("gaiadask").setLevel(level)


def written(config: Config, folder: Path, text: str = "") -> Path:
    path = folder / "gaia.toml"
    path.write_text(text or dump_toml(config, comments=False))
    return path


@pytest.fixture
def made(small_run: Config, tmp_path: Path) -> Config:
    """A run made up to its prior, to be changed."""
    return copied(small_run, tmp_path / "store")


def hashes(folder: str | Path) -> dict[str, str]:
    """Of every file below a folder."""
    root = Path(folder)
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}


def assert_refused(outcome: Outcome, told: str, code: int = 1) -> None:
    """One screen on stderr that says `told`, no traceback, and this exit code."""
    assert outcome.code == code, outcome
    assert re.search(told, outcome.err, re.DOTALL), outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert len(outcome.err.strip().splitlines()) <= SCREEN


# Help and init -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(gaiadask, command: str) -> None:  # type: ignore[no-untyped-def]
    outcome = gaiadask(command, "--help")
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) > 8
    click_command = typer.main.get_command(cli.app).commands[command]  # type: ignore[attr-defined]
    assert click_command.help
    assert all(getattr(p, "help", None) for p in click_command.params), "every argument and option is explained"


def test_the_stages_are_commands() -> None:
    assert {"init", "run", *(stage.name for stage in STAGES), "decode", "info"} <= set(COMMANDS)


def test_init_writes_the_defaults_and_loads(gaiadask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "gaia.toml"
    outcome = gaiadask("init", path)
    assert outcome.code == 0
    assert f"gaiadask run {path}" in outcome.out.replace("\n", "")
    assert load_config(path) == Config(store=str(tmp_path / "store"))
    assert 'store = "./store"' in path.read_text()


def test_init_writes_the_other_presets_of_stars(gaiadask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name, not_null in (("seed25", "seed25"), ("seed25-nulls", ())):
        path = tmp_path / f"{name}.toml"
        assert gaiadask("init", path, "--stars", name).code == 0
        config = load_config(path)
        assert (config.model.columns, config.model.latents, config.selection.not_null) == ("seed25", 16, not_null)
    assert_refused(gaiadask("init", tmp_path / "x.toml", "--stars", "all"), "there are seed16, seed25, seed25-nulls", code=2)


def test_init_chooses_what_fits_a_number_of_bits(gaiadask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for stars, bits in (("seed16", 64), ("seed25-nulls", 128)):
        path = tmp_path / f"{stars}{bits}.toml"
        assert gaiadask("init", path, "--stars", stars, "--bits", bits).code == 0
        config = load_config(path)
        assert (config.latent.bits, config.model.preset) == (bits, "flow")
    for bits, wrong in ((17, "small"), (145, "large"), (-1, "small")):
        refusal = (
            rf"--bits {bits} is too {wrong} for the 9 free columns of seed16: expected 18 to 144 bits a star, 2 to 16 for each"
        )
        assert_refused(gaiadask("init", tmp_path / "x.toml", "--bits", bits), refusal, code=2)


def test_init_overwrites_nothing(gaiadask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "gaia.toml"
    path.write_text("mine")
    assert_refused(gaiadask("init", path), "is there already", code=2)
    assert path.read_text() == "mine"
    assert_refused(gaiadask("init", tmp_path / "no" / "folder" / "gaia.toml"), "cannot be written", code=2)


def test_info_tells_what_is_made_and_what_is_not(gaiadask, made: Config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    outcome = gaiadask("info", written(made, tmp_path))
    assert outcome.code == 0
    for stage in ("ingest", "statistics", "train", "encode", "prior", "evaluate", "report"):
        assert stage in outcome.out
    assert outcome.out.count("not made yet") == 2
    assert "train stars" in outcome.out
    assert all(len(line) <= 80 for line in outcome.out.splitlines())
    as_json = gaiadask("info", made_at(tmp_path), "--json")
    assert json.loads(as_json.out) == Manifest(Store(made.store), RunPaths(made.name)).read().to_json()


def made_at(folder: Path) -> Path:
    return folder / "gaia.toml"


def test_the_version(gaiadask) -> None:  # type: ignore[no-untyped-def]
    assert gaiadask("--version").out == f"gaiadask {version('gaiadask')}\n"


@pytest.mark.slow
def test_what_is_asked_is_said_at_once_and_quiet_says_only_the_result(gaiadask, made: Config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = written(made, tmp_path)
    done = gaiadask("encode", path)
    assert done.err.startswith(f"run small in {made.store}: encode\n")
    assert re.fullmatch(r"     encode  [\d,]+ stars in [\d,]+ partitions? \(already there, .*\)\n", done.out)
    quiet = gaiadask("encode", path, "--quiet")
    assert (quiet.out, quiet.err) == (done.out, "")


def test_a_remedy_can_be_pasted(gaiadask, made: Config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = written(made, tmp_path)
    assert_refused(gaiadask("encode", path, "--name", "other"), f"make it with `gaiadask train {path} --name other`")


# Wrong commands and files --------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name = ", r"gaia\.toml: not a TOML file"),
        ('nmae = "x"', r"nmae: unknown option; did you mean name\? There are name, store"),
        ("[model]\nlatent = 8", r"model\.latent: unknown option"),
        ('[model]\nlatents = "many"', r"model\.latents: .*found 'many'"),
        ('[selection]\ncolumns = ["parallaxe"]', r"unknown column\(s\) parallaxe: did you mean parallax\?"),
        ('[selection]\ncolumns = ["parallax"]', r"model\.columns asks for .*which selection\.columns does not fetch"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(gaiadask, tmp_path: Path, text: str, told: str) -> None:  # type: ignore[no-untyped-def]
    for command in ("run", "info", "train"):
        assert_refused(gaiadask(command, written(Config(), tmp_path, text)), told, code=2)
    assert not (tmp_path / "store").exists()


def test_a_missing_file_names_the_command_that_writes_one(gaiadask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert_refused(gaiadask("run", tmp_path / "gaia.toml"), r"no such file\. `gaiadask init .*gaia\.toml`", code=2)


def test_a_wrong_command_line_is_refused(gaiadask, made: Config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path, before = written(made, tmp_path), hashes(made.store)
    assert_refused(gaiadask("train", path, "--replace", "training"), r"unknown stage 'training': .*There are ingest, .*train", 2)
    assert_refused(gaiadask("run", path, "--name", "../other"), r"name: .*found '\.\./other'", code=2)
    assert_refused(gaiadask("run", path, "--frobnicate"), "No such option", code=2)
    assert_refused(gaiadask("trian", path), "No such command", code=2)
    assert_refused(gaiadask("decode", path), "Missing option '--output'", code=2)
    assert hashes(made.store) == before


# Stages --------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "needs"),
    [("statistics", "ingest"), ("train", "statistics"), ("encode", "train"), ("prior", "train"), ("evaluate", "encode")],
)
def test_a_stage_without_its_input_names_the_command_that_makes_it(  # type: ignore[no-untyped-def]
    gaiadask, tmp_path: Path, command: str, needs: str
) -> None:
    path = written(small_config(tmp_path / "store"), tmp_path)
    assert_refused(gaiadask(command, path), rf"make it with `gaiadask {needs} {path}`")
    assert_refused(gaiadask("decode", path, "-o", tmp_path / "out"), f"make it with `gaiadask encode {path}`")


@pytest.mark.slow
def test_what_is_there_is_skipped(gaiadask, made: Config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path, before = written(made, tmp_path), hashes(made.store)
    for command in ("ingest", "statistics", "train", "encode", "prior"):
        assert gaiadask(command, path).code == 0
    assert hashes(made.store) == before


@pytest.mark.slow
def test_new_stars_are_drawn_once_and_wrong_wishes_refused(gaiadask, made: Config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = written(made, tmp_path)
    assert_refused(gaiadask("sample", path, "-n", "10", "--cone", "1,2"), r"--cone '1,2': expected 3 numbers", code=2)
    assert_refused(gaiadask("sample", path, "-n", "10", "--magnitude", "15,13"), "expected the brighter", code=2)
    for option, value in (("cone", "nan,0,1"), ("magnitude", "10,inf")):
        refusal = rf"options of gaiadask sample:\n  {option}\.\d: .*finite number"
        assert_refused(gaiadask("sample", path, "-n", "10", f"--{option}", value), refusal, code=2)
    assert_refused(
        gaiadask("decode", path, "--output", ""), r"options of gaiadask decode:\n  output: .*at least 1 character", code=2
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert_refused(gaiadask("sample", path, "-n", "10", "--output", tmp_path / "mine"), r"has other files \(notes\.txt")


@pytest.mark.slow
def test_brackets_and_colons_in_a_path_are_no_styles(gaiadask, small_run: Config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = copied(small_run, tmp_path / "a [" / "stars] :star:")
    path = written(config, tmp_path)
    assert_told(gaiadask("info", path), "stars] :star:")
    assert_told(gaiadask("encode", path), "encode")
    output = tmp_path / "new [/] :star:"
    assert_told(gaiadask("sample", path, "--stars", 5, "--output", output), str(output))
    assert_refused(gaiadask("info", tmp_path / "no [/red] :star:.toml"), re.escape("no [/red] :star:.toml"), code=2)


def assert_told(outcome: Outcome, told: str) -> None:
    assert outcome.code == 0, outcome
    assert told in outcome.out.replace("\n", ""), outcome


def test_another_selection_in_the_same_store_is_refused(gaiadask, made: Config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    before = hashes(made.store)
    other = small_config(made.store, name="other", archive={"mock_seed": 7})
    assert_refused(gaiadask("run", written(other, tmp_path)), r"mock_seed: 0 there, 7 asked for.*another store.*--replace ingest")
    after = hashes(made.store)
    assert {name: after[name] for name in before} == before
    same_name = small_config(made.store, archive={"mock_seed": 7})
    assert_refused(gaiadask("ingest", written(same_name, tmp_path)), r"mock_seed: 0 there, 7 asked for")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "train", "encode", "evaluate"])
def test_another_model_in_the_same_run_is_refused(gaiadask, made: Config, tmp_path: Path, command: str) -> None:  # type: ignore[no-untyped-def]
    before = hashes(made.store)
    other = small_config(made.store, model={"latents": 4})
    told = r"has a train made from other inputs \(latent\.bits: 72 there, 48 asked for; model\.latents: 6 there, 4 asked for\)\. Nothing was overwritten.*--replace train"
    assert_refused(gaiadask(command, written(other, tmp_path)), told)
    assert hashes(made.store) == before


@pytest.mark.slow
def test_replace_drops_a_stage_and_all_that_depends_on_it(gaiadask, made: Config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path, run, store = written(made, tmp_path), RunPaths(made.name), Store(made.store)
    catalogue = {name: digest for name, digest in hashes(made.store).items() if name.startswith("catalogue/")}
    # A stage before the dropped one: nothing is made, so no cluster is needed.
    done = gaiadask("statistics", path, "--replace", "train")
    assert done.code == 0
    assert re.search(r"statistics  [\d,]+ stars, .* train stars \(already there, ", done.out)
    assert set(Manifest(store, run).read().stages) == {"ingest", "statistics"}
    assert not store.exists(run.model)
    assert not store.exists(run.latent)
    assert_refused(gaiadask("encode", path), f"make it with `gaiadask train {path}`")
    assert {name: digest for name, digest in hashes(made.store).items() if name.startswith("catalogue/")} == catalogue


# The world outside ---------------------------------------------------------------------------------------------------
def test_a_store_that_is_not_writable(gaiadask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = written(small_config("/proc/gaiadask"), tmp_path)
    assert_refused(gaiadask("run", path), r"/proc/gaiadask.* is not writable: .*another store")


def test_a_protocol_that_nobody_knows(gaiadask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = written(small_config("gopher://store"), tmp_path)
    assert_refused(gaiadask("run", path), r"store 'gopher://store' cannot be opened")


def test_a_run_that_another_writer_holds(gaiadask, made: Config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = written(made, tmp_path)
    with Lease(Store(made.store), RunPaths(made.name).lease):
        before = hashes(made.store)
        assert_refused(gaiadask("evaluate", path), r"runs/small/lease\.json is held by process \d+ on .*one writer at a time")
        assert_refused(gaiadask("run", path, "--replace", "encode"), "is held by process")
        assert hashes(made.store) == before


def test_a_catalogue_that_another_writer_fills(gaiadask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = written(small_config(tmp_path / "store"), tmp_path)
    with Lease(Store(str(tmp_path / "store")), INGEST_LEASE):
        assert_refused(gaiadask("run", path), r"catalogue/_ingest/lease\.json is held by process")


@pytest.mark.slow
def test_a_service_that_does_not_answer(gaiadask, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = small_config(tmp_path / "store", archive={"kind": "tap", "url": "http://127.0.0.1:9/tap"})
    assert_refused(gaiadask("run", written(config, tmp_path)), r"http://127\.0\.0\.1:9/tap: Connection refused")


def files(folder: Path, uri: str, **changes: object) -> Path:
    archive = {"kind": "files", "uris": (uri,)}
    return written(small_config(folder / "store", archive=archive, **changes), folder)


@pytest.mark.slow
def test_files_that_are_none_or_damaged(gaiadask, small_run: Config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert_refused(gaiadask("run", files(tmp_path, f"{tmp_path}/*.parquet")), "matches no file")
    pq.write_table(fetched(small_run).slice(0, 500), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    assert_refused(gaiadask("run", files(tmp_path, f"{tmp_path}/a.parquet")), r"a\.parquet")
    (tmp_path / "a.parquet").write_bytes(whole)
    selection = {"where": "parallax > 1e300"}
    assert_refused(gaiadask("run", files(tmp_path, f"{tmp_path}/a.parquet", selection=selection)), "the selection is empty")
    selection = {"where": "parallaxe > 1"}
    assert_refused(gaiadask("run", files(tmp_path, f"{tmp_path}/a.parquet", selection=selection)), "parallaxe", code=2)
    assert not (tmp_path / "store" / "catalogue" / "hats.properties").exists()


def test_a_cluster_that_does_not_answer(gaiadask, made: Config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = made.model_copy(update={"cluster": made.cluster.model_copy(update={"address": "nonsense://here"})})
    assert_refused(gaiadask("evaluate", written(config, tmp_path)), r"cluster\.address 'nonsense://here'")


# As users start it ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_damaged_partition_is_named_and_nothing_of_it_published(made: Config, tmp_path: Path) -> None:
    store = Store(made.store)
    Manifest(store, RunPaths(made.name)).remove("statistics", "train", "encode")
    name = store.list("catalogue/dataset", ".parquet")[2]
    path = Path(store.path(name))
    path.write_bytes(path.read_bytes()[:-200])
    done = subprocess.run(
        [sys.executable, "-m", "gaiadask.cli", "statistics", str(written(made, tmp_path))],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert_refused(
        Outcome(done.returncode, done.stdout, done.stderr), "what ingest made is missing or damaged: .*gaiadask ingest .*gaia.toml"
    )
    # The log is wrapped to the terminal's width.
    assert f"{name}isnotawholeparquetfile" in "".join(done.stderr.split())
    assert Manifest(store, RunPaths(made.name)).entry("statistics") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [(["run", "nowhere.toml"], 2, "no such file"), (["evaluate", "gaia.toml"], 1, "gaiadask encode"), (["--help"], 0, "")],
)
def test_exit_codes(tmp_path: Path, arguments: list[str], code: int, told: str) -> None:
    written(small_config(tmp_path / "store"), tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "gaiadask.cli", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_neighbours_as_a_table_and_as_json(gaiadask: Any, small_run: Config, tmp_path: Path) -> None:
    file = tmp_path / "gaia.toml"
    file.write_text(dump_toml(small_run, comments=False))
    star = fetched(small_run)["source_id"][0].as_py()
    shown, found = gaiadask("nearest", file, star, "-k", 3), gaiadask("nearest", file, star, "-k", 3, "--json")
    neighbours = json.loads(found.out)["neighbours"]
    assert [each["rank"] for each in neighbours] == [1, 2, 3] and {each["source_id"] for each in neighbours} == {star}
    assert all(str(each["neighbour"]) in shown.out for each in neighbours)
    refused = gaiadask("nearest", file, 7)
    assert refused.code == 1 and "does not have it" in refused.err and refused.out == ""
