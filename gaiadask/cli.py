"""The command line: parses, and has the library do all work; what it shows is in `terminal`."""

from __future__ import annotations

import datetime
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

import gaiadask
from gaiadask.config.presets import STARTS, start_with_bits
from gaiadask.config.sections import Config
from gaiadask.config.toml import dump_toml, load_config, parse_config, parse_options
from gaiadask.errors import ConfigurationError, GaiadaskError, known_names
from gaiadask.records import Record
from gaiadask.stages.stage import Stage
from gaiadask.stages.table import STAGES
from gaiadask.terminal import (
    Bars,
    console,
    errors,
    print_citations,
    print_error,
    print_findings,
    print_forecast,
    print_json,
    print_rows,
    print_search,
    print_stages,
    progress_bars,
    table_of_stages,
)

if TYPE_CHECKING:
    from gaiadask.store.manifest import ManifestRecord

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="The Gaia catalogue as something small, complete and usable.\n\n"
    "Start with `gaiadask init gaia.toml`, edit it, then `gaiadask run gaia.toml`. Every command can be killed and given "
    "again: it goes on where it stopped.",
)
ConfigArgument = Annotated[Path, typer.Argument(help="The configuration, a TOML file (`gaiadask init` writes one).")]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the run, instead of the file's.")]
_REPLACE_HELP = (
    f"First drop the result of this stage and of all stages that depend on it. Stages: {', '.join(stage.name for stage in STAGES)}."
)
ReplaceOption = Annotated[
    list[str] | None,
    typer.Option("--replace", metavar="STAGE", help=_REPLACE_HELP),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars: only the result, warnings and errors.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_INTERRUPTED = 130  # what typer makes of Ctrl-C
_HELP = {stage.name: stage.help for stage in STAGES}
T = TypeVar("T")


_given: list[str] = []
"""The configuration file and the name that the command was given, as it was given them."""


def main() -> None:
    """Entry point: errors that users can cause are printed without a traceback; exit code 1, or 2 for a wrong option."""
    _given.clear()
    try:
        app()
    except ConfigurationError as error:
        print_error("Configuration", error, shlex.join(_given))
        sys.exit(2)
    except GaiadaskError as error:
        print_error(type(error).__name__, error, shlex.join(_given))
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            errors.print("Interrupted. Finished work is not lost: the same command goes on from there.", soft_wrap=True)
        raise


def _print_version(asked: bool) -> None:
    if asked:
        console.print(f"gaiadask {gaiadask.__version__}")
        raise typer.Exit


@app.callback()
def gaiadask_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and nothing else.")
    ] = False,
) -> None: ...


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("gaia.toml"),
    stars: Annotated[
        str,
        typer.Option(
            help="seed16: the 16 columns of the seed, of stars with a value in all 25; seed25: these and nine error columns; seed25-nulls: the 25 columns, of stars with nulls too."
        ),
    ] = "seed16",
    bits: Annotated[
        int | None,
        typer.Option(help="Bits of a star's latents, with preset flow, which needs the fewest."),
    ] = None,
) -> None:
    """Write a commented configuration: every option, its meaning and its default."""
    if path.exists():
        raise ConfigurationError(f"{path} is there already; name another file")
    if stars not in STARTS:
        raise ConfigurationError(f"--stars {stars}: {known_names([stars], STARTS)}")
    options = STARTS[stars] if bits is None else start_with_bits(stars, bits)
    try:
        path.write_text(dump_toml(parse_config(options)), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error}; name another place") from error
    console.print(f"{path} written. Next: edit it, then `gaiadask run {path}`.")


@app.command()
def run(
    config: ConfigArgument,
    name: NameOption = None,
    replace: ReplaceOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """All stages: ingest, statistics, train, encode, prior, evaluate, report. What is already there is skipped."""
    _run(_load(config, name), [stage.name for stage in STAGES if not stage.on_request], replace, verbose, quiet)


def _stage_command(stage: Stage) -> Callable[..., None]:
    def command(
        config: ConfigArgument,
        name: NameOption = None,
        replace: ReplaceOption = None,
        verbose: VerboseOption = False,
        quiet: QuietOption = False,
    ) -> None:
        _run(_load(config, name), [stage.name], replace, verbose, quiet)

    command.__doc__ = stage.help
    return command


for _stage in STAGES:
    if not _stage.on_request:
        app.command(_stage.name)(_stage_command(_stage))


@app.command(help=_HELP["tune"])
def tune(
    config: ConfigArgument,
    name: NameOption = None,
    replace: ReplaceOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    from gaiadask.store.files import Store
    from gaiadask.store.paths import RunPaths
    from gaiadask.training.search import read_search

    settings = _load(config, name)
    _run_on_request("tune", settings, None, replace, verbose, quiet, show=False)
    record = read_search(Store(settings.store), RunPaths(settings.name))
    if as_json:
        print_json(record.to_json())
        return
    print_search(record, config)


@app.command()
def info(config: ConfigArgument, name: NameOption = None, as_json: JsonOption = False) -> None:
    """What a run has made so far, and from what."""
    settings = _load(config, name)
    record = _manifest_of(settings)
    if as_json:
        print_json(record.to_json())
        return
    # What was made on request may lie in several places, each with an entry of its own.
    of_a_run = [stage.name for stage in STAGES if not stage.on_request]
    stages = [*of_a_run, *sorted(record.stages.keys() - set(of_a_run))]
    console.print(table_of_stages(f"run {settings.name} in {settings.store}", record.stages, stages))


@app.command()
def plan(config: ConfigArgument, as_json: JsonOption = False) -> None:
    """Stars, chunks, bytes, disk and time of a selection, before anything is fetched."""
    from gaiadask.stages.forecast import forecast

    settings = _load(config, None)
    found = forecast(settings, settings.cluster.workers or os.cpu_count() or 1)
    if as_json:
        print_json(found.to_json())
    else:
        print_forecast(found)


@app.command()
def cite(
    config: ConfigArgument,
    name: NameOption = None,
    bibtex: Annotated[bool, typer.Option("--bibtex", help="Print BibTeX entries.")] = False,
) -> None:
    """What to cite for what a run used: data, software, methods."""
    from gaiadask.citations import ACKNOWLEDGEMENT, citations, uses_gaia

    settings = _load(config, name)
    stages = {entry.split(" ")[0] for entry in _manifest_of(settings).stages}
    print_citations(citations(settings, stages), ACKNOWLEDGEMENT if uses_gaia(settings) else "", bibtex)


@app.command(help=_HELP["decode"])
def decode(
    config: ConfigArgument,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder (any fsspec URI) for the parquet files, one a partition.")],
    impute: Annotated[
        bool,
        typer.Option(
            "--impute", help="Fill null values with the model's estimates; columns NAME_std give the standard deviation of each."
        ),
    ] = False,
    name: NameOption = None,
    replace: ReplaceOption = None,
    quiet: QuietOption = False,
) -> None:
    from gaiadask.stages.decode import DecodeOptions

    options = parse_options(DecodeOptions, {"output": output, "impute": impute}, "options of gaiadask decode")
    _run_on_request("decode", _load(config, name), options, replace, quiet=quiet)


@app.command()
def nearest(
    config: ConfigArgument,
    stars: Annotated[list[int], typer.Argument(metavar="SOURCE_ID...", help="Stars of the catalogue.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many neighbours each gets.")] = 10,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stars like given ones: nearest by their latents, each in units of its precision, among stars with the same nulls."""
    import pyarrow as pa

    from gaiadask.run import open_run

    settings = _load(config, name)
    found = pa.table(open_run(f"{settings.store}/runs/{settings.name}").nearest(stars, k))
    print_rows("neighbours", found, as_json)


@app.command()
def outliers(
    config: ConfigArgument,
    n: Annotated[int, typer.Option("-n", min=1, help="How many for each reason.")] = 10,
    name: NameOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Stars like no other: the worst rebuilt in units of their own errors, and the least likely under the prior."""
    from gaiadask.stages.outliers import find_outliers

    settings = _load(config, name)
    found = _with_progress(lambda progress: find_outliers(settings, n, progress), False, quiet)
    print_rows("outliers", found, as_json)


@app.command(help=_HELP["sample"])
def sample(
    config: ConfigArgument,
    stars: Annotated[int, typer.Option("--stars", "-n", min=1, help="How many.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same stars, on any number of workers.")] = 0,
    cone: Annotated[
        str, typer.Option("--cone", metavar="RA,DEC,RADIUS", help="Only stars within RADIUS of RA, DEC, all in degrees.")
    ] = "",
    magnitude: Annotated[
        str, typer.Option("--magnitude", metavar="LO,HI", help="Only stars with LO <= G <= HI, magnitudes (LO is the bright end).")
    ] = "",
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder (any fsspec URI) for the parquet files; default: the run's samples/.")
    ] = "",
    name: NameOption = None,
    replace: ReplaceOption = None,
    quiet: QuietOption = False,
) -> None:
    from gaiadask.stages.sample import SampleOptions

    circle, limits = _numbers("--cone", cone, 3), _numbers("--magnitude", magnitude, 2)
    asked = {"stars": stars, "seed": seed, "cone": circle or None, "magnitude": limits or None, "output": output}
    options = parse_options(SampleOptions, asked, "options of gaiadask sample")
    _run_on_request("sample", _load(config, name), options, replace, quiet=quiet)


@app.command(help=_HELP["extend"])
def extend(config: ConfigArgument, name: NameOption = None, replace: ReplaceOption = None, quiet: QuietOption = False) -> None:
    _run_on_request("extend", _load(config, name), None, replace, quiet=quiet)


@app.command(help=_HELP["compress"])
def compress(
    config: ConfigArgument,
    name: NameOption = None,
    replace: ReplaceOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    _run_on_request("compress", _load(config, name), None, replace, verbose, quiet)


@app.command(help=_HELP["decompress"])
def decompress(
    config: ConfigArgument,
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder (any fsspec URI); the catalogue is its subfolder catalogue/.")
    ],
    name: NameOption = None,
    replace: ReplaceOption = None,
    quiet: QuietOption = False,
) -> None:
    from gaiadask.stages.decompress import DecompressOptions

    options = parse_options(DecompressOptions, {"output": output}, "options of gaiadask decompress")
    _run_on_request("decompress", _load(config, name), options, replace, quiet=quiet)


def _numbers(option: str, text: str, count: int) -> list[float]:
    """Raises ConfigurationError unless `text` is empty or has so many numbers with commas between them."""
    try:
        numbers = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = []
    if text and len(numbers) != count:
        raise ConfigurationError(f"{option} {text!r}: expected {count} numbers with commas between them")
    return numbers


@app.command()
def validate(
    config: ConfigArgument,
    quick: Annotated[
        bool, typer.Option("--quick", help="Of the catalogue read ids and positions alone, without checksums; of the rest footers.")
    ] = False,
    name: NameOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check the catalogue, and what the run has made of it: latents, stars, compressed catalogue. Exit code 1 where something is wrong."""
    from gaiadask.stages.validation import validate_run

    settings = _load(config, name)
    record, products, findings = _with_progress(lambda progress: validate_run(settings, quick, progress), False, quiet)
    if as_json:
        found: list[Any] = [{"where": finding.where, "problem": finding.problem} for finding in findings]
        print_json({"rows": record.rows, "partitions": len(record.partitions), "checked": list(products), "findings": found})
    else:
        print_findings(f"{record.rows:,} stars in {len(record.partitions):,} partitions", products, findings)
    if findings:
        raise typer.Exit(1)


@app.command()
def deploy(
    config: ConfigArgument,
    name: NameOption = None,
    pool: Annotated[
        str, typer.Option("--pool", help="Prefect work pool; created, as a process pool, if it does not exist.")
    ] = "gaia",
) -> None:
    """Register the Prefect deployments gaia/train, ingest, encode, sample, compress and tune, with this file's values as their defaults."""
    from flows.deployments import register

    names = register(_load(config, name), pool)
    lines = [
        f"registered: {', '.join(names)}",
        f"start a worker, where the work is to be done:  prefect worker start --pool {pool}",
        f"run:  prefect deployment run {names[0]} --watch",
        """override a section:  --param training='{"rows_seen": 100000}' (options it leaves out have gaiadask's defaults)""",
    ]
    console.print("\n".join(lines), soft_wrap=True)


def _load(path: Path, name: str | None) -> Config:
    _given[:] = [str(path), *(["--name", name] if name else [])]
    return load_config(path, **({"name": name} if name else {}))


def _manifest_of(config: Config) -> ManifestRecord:
    from gaiadask.store.files import Store
    from gaiadask.store.manifest import Manifest
    from gaiadask.store.paths import RunPaths

    return Manifest(Store(config.store), RunPaths(config.name)).read()


def _run(config: Config, stages: list[str], replace: list[str] | None, verbose: bool, quiet: bool) -> None:
    from gaiadask.stages.engine import run_stages

    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if not quiet:
        errors.print(f"run {config.name} in {config.store}: {', '.join(stages)}", soft_wrap=True)
    _with_progress(lambda progress: run_stages(config, stages, replacing=replace or (), progress=progress), verbose, quiet)
    print_stages(_manifest_of(config).stages, stages, started)


def _run_on_request(
    stage: str,
    config: Config,
    options: Record | None,
    replace: list[str] | None,
    verbose: bool = False,
    quiet: bool = False,
    show: bool = True,
) -> None:
    from gaiadask.stages.engine import run_stages

    results = _with_progress(
        lambda progress: run_stages(config, [stage], request=options, replacing=replace or (), progress=progress), verbose, quiet
    )
    if show:
        console.print(results[stage].summary(), soft_wrap=True)


def _with_progress(work: Callable[[Bars], T], verbose: bool, quiet: bool) -> T:
    with progress_bars(verbose, quiet) as bars:
        return work(bars)


if __name__ == "__main__":
    main()
