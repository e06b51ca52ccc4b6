"""The command line: parses, configures logging, draws progress, prints. All work is done by the library."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from gaiadask.config.presets import STARTS
from gaiadask.config.sections import Config
from gaiadask.config.toml import dump_toml, load_config, parse_config, parse_options
from gaiadask.errors import ConfigurationError, GaiadaskError
from gaiadask.records import JsonObject, Record
from gaiadask.stages.stage import Stage
from gaiadask.stages.table import STAGES

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="The Gaia catalogue as something small, complete and usable.\n\n"
    "Start with `gaiadask init gaia.toml`, edit it, then `gaiadask run gaia.toml`. Every command can be killed and given "
    "again: it goes on where it stopped.",
)
# Plain: in paths, names and messages [brackets] and :colons: are what they are, no styles and no pictures.
console = Console(markup=False, emoji=False, highlight=False)
errors = Console(markup=False, emoji=False, highlight=False, stderr=True)

ConfigArgument = Annotated[Path, typer.Argument(help="The configuration, a TOML file (`gaiadask init` writes one).")]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the run, instead of the file's.")]
ReplaceOption = Annotated[
    list[str] | None,
    typer.Option("--replace", metavar="STAGE", help="First drop the result of this stage and of all stages that depend on it."),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")]
_INTERRUPTED = 130  # what typer makes of Ctrl-C
_RESULT_SHOWN = 100  # characters of a stage's result: the rest lies in manifest.json
_HELP = {stage.name: stage.help for stage in STAGES}
T = TypeVar("T")


def main() -> None:
    """Entry point: errors that users can cause are printed without a traceback; exit code 1, or 2 for a wrong option."""
    try:
        app()
    except ConfigurationError as error:
        _print_error("Configuration", error)
        sys.exit(2)
    except GaiadaskError as error:
        _print_error(type(error).__name__, error)
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            errors.print("Interrupted. Finished work is not lost: the same command goes on from there.", soft_wrap=True)
        raise


def _print_error(kind: str, error: GaiadaskError) -> None:
    errors.print(Text.assemble((f"{kind}:", "bold red"), f" {error}"), soft_wrap=True)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("gaia.toml"),
    stars: Annotated[
        str,
        typer.Option(
            help="seed16: the 16 columns of the seed, of stars with a value in all 25; seed25: these and nine error columns; seed25-nulls: the 25 columns, of stars with nulls too."
        ),
    ] = "seed16",
) -> None:
    """Write a commented configuration: every option, its meaning and its default."""
    if path.exists():
        raise ConfigurationError(f"{path} is there already; name another file")
    if stars not in STARTS:
        raise ConfigurationError(f"--stars {stars}: known are {', '.join(STARTS)}")
    try:
        path.write_text(dump_toml(parse_config(STARTS[stars])), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error}; name another place") from error
    console.print(f"{path} written. Next: edit it, then `gaiadask run {path}`.")


@app.command()
def run(config: ConfigArgument, name: NameOption = None, replace: ReplaceOption = None, verbose: VerboseOption = False) -> None:
    """All stages: ingest, statistics, train, encode, prior, evaluate, report. What is already there is skipped."""
    settings = _load(config, name)
    _run(settings, None, replace, verbose)
    _print_report_address(settings)


def _stage_command(stage: Stage) -> Callable[..., None]:
    def command(
        config: ConfigArgument, name: NameOption = None, replace: ReplaceOption = None, verbose: VerboseOption = False
    ) -> None:
        _run(_load(config, name), [stage.name], replace, verbose)

    command.__doc__ = stage.help
    return command


for _stage in STAGES:
    if not _stage.on_request:
        app.command(_stage.name)(_stage_command(_stage))


@app.command(help=_HELP["tune"])
def tune(config: ConfigArgument, name: NameOption = None, replace: ReplaceOption = None, verbose: VerboseOption = False) -> None:
    from gaiadask.store.files import Store
    from gaiadask.store.paths import RunPaths
    from gaiadask.training.search import options_toml, read_search, search_table

    settings = _load(config, name)
    _run_on_request("tune", settings, None, replace, verbose)
    record = read_search(Store(settings.store), RunPaths(settings.name))
    head, rows = search_table(record)
    table = Table(*head, title=record.score)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    console.print(f"the best, for {config}:\n{options_toml(record.best_options)}")


@app.command()
def info(config: ConfigArgument, name: NameOption = None) -> None:
    """What a run has made so far, and from what."""
    from gaiadask.store.files import Store
    from gaiadask.store.manifest import Manifest
    from gaiadask.store.paths import RunPaths

    settings = _load(config, name)
    entries = Manifest(Store(settings.store), RunPaths(settings.name)).read().stages
    table = Table("stage", "key", "finished", "seconds", "result", title=f"{settings.store} · run {settings.name}")
    # What was made on request may lie in several places, each with an entry of its own.
    of_a_run = [stage.name for stage in STAGES if not stage.on_request]
    for stage in (*of_a_run, *sorted(entries.keys() - set(of_a_run))):
        entry = entries.get(stage)
        cells = (
            [entry.key, entry.finished, f"{entry.seconds:.1f}", json.dumps(entry.result)[:_RESULT_SHOWN]] if entry else ["–"] * 4
        )
        table.add_row(Text(stage), *map(Text, cells))
    console.print(table)


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
) -> None:
    from gaiadask.stages.decode import DecodeOptions

    options = parse_options(DecodeOptions, {"output": output, "impute": impute}, "options of gaiadask decode")
    result = _run_on_request("decode", _load(config, name), options, replace)
    console.print(f"{result['rows']} stars rebuilt into {output}")


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
) -> None:
    from gaiadask.stages.sample import SampleOptions

    circle, limits = _numbers("--cone", cone, 3), _numbers("--magnitude", magnitude, 2)
    asked = {"stars": stars, "seed": seed, "cone": circle or None, "magnitude": limits or None, "output": output}
    options = parse_options(SampleOptions, asked, "options of gaiadask sample")
    result = _run_on_request("sample", _load(config, name), options, replace)
    console.print(f"{result['rows']} new stars in {result['files']} files: {result['uri']}", soft_wrap=True)


@app.command(help=_HELP["compress"])
def compress(
    config: ConfigArgument, name: NameOption = None, replace: ReplaceOption = None, verbose: VerboseOption = False
) -> None:
    result = _run_on_request("compress", _load(config, name), None, replace, verbose)
    console.print(
        f"{result['rows']} stars in {result['bytes_a_star']:.2f} bytes each, {result['share']:.1%} of the catalogue; every value was "
        f"decoded, the worst is at {result['worst']:.4f} of its bound; {result['exceptions']} are stored as they are"
    )


@app.command(help=_HELP["decompress"])
def decompress(
    config: ConfigArgument,
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder (any fsspec URI); the catalogue is its subfolder catalogue/.")
    ],
    name: NameOption = None,
    replace: ReplaceOption = None,
) -> None:
    from gaiadask.stages.decompress import DecompressOptions

    options = parse_options(DecompressOptions, {"output": output}, "options of gaiadask decompress")
    result = _run_on_request("decompress", _load(config, name), options, replace)
    console.print(f"{result['rows']} stars in {result['files']} partitions: {result['uri']}", soft_wrap=True)


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
    quick: Annotated[bool, typer.Option("--quick", help="Skip the checksums; read only the id and position columns.")] = False,
) -> None:
    """Check the catalogue against its ledger and the HATS rules; name what is wrong. Exit code 1 where something is."""
    from gaiadask.stages.ingest import validate_catalogue

    record, findings = _with_progress(lambda progress: validate_catalogue(_load(config, None), quick, progress), verbose=False)
    if findings:
        table = Table("where", "what", title=f"{len(findings)} findings")
        for finding in findings:
            table.add_row(Text(finding.where), Text(finding.problem))
        console.print(table)
        raise typer.Exit(1)
    console.print(f"complete and correct: {record.rows} rows in {len(record.partitions)} partitions")


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
    return load_config(path, **({"name": name} if name else {}))


def _run(config: Config, stages: list[str] | None, replace: list[str] | None, verbose: bool) -> None:
    from gaiadask.stages.engine import run_stages

    results = _with_progress(lambda progress: run_stages(config, stages, replacing=replace or (), progress=progress), verbose)
    for stage, result in results.items():
        shown = ", ".join(f"{key} {value}" for key, value in result.to_json().items())
        console.print(f"{stage:>11}  {shown}", soft_wrap=True)


def _run_on_request(
    stage: str, config: Config, options: Record | None, replace: list[str] | None, verbose: bool = False
) -> JsonObject:
    from gaiadask.stages.engine import run_stages

    def work(progress: Bars) -> dict[str, Record]:
        return run_stages(config, [stage], request=options, replacing=replace or (), progress=progress)

    return _with_progress(work, verbose)[stage].to_json()


def _with_progress(work: Callable[[Bars], T], verbose: bool) -> T:
    with _bars() as bars:
        handler = RichHandler(console=bars.console, show_path=False, rich_tracebacks=False)
        logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s", force=True)
        logging.getLogger("gaiadask").setLevel(logging.INFO if verbose else logging.WARNING)
        # A request that is tried again is not worth a line; the error reports one that is given up.
        logging.getLogger("urllib3").setLevel(logging.WARNING if verbose else logging.ERROR)
        return work(Bars(bars))


_plain = partial(TextColumn, markup=False)


@contextmanager
def _bars() -> Iterator[Progress]:
    columns = (
        _plain("{task.description:>11}"), BarColumn(), MofNCompleteColumn(), _plain("{task.fields[unit]}"),
        RateColumn(), TimeElapsedColumn(), TimeRemainingColumn(), _plain("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=errors, refresh_per_second=4) as bars:
        yield bars


class RateColumn(ProgressColumn):
    """Units a second, of late."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s")


class Bars:
    """The library's progress as rich bars, one a task."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.ids: dict[str, TaskID] = {}

    def start(self, task: str, total: float, unit: str) -> None:
        self.ids[task] = self.bars.add_task(task, total=total, unit=unit, note="")

    def advance(self, task: str, amount: float = 1.0, note: str = "") -> None:
        self.bars.advance(self.ids[task], amount)
        if note:
            self.bars.update(self.ids[task], note=note)

    def finish(self, task: str) -> None:
        self.bars.stop_task(self.ids[task])


def _print_report_address(config: Config) -> None:
    from gaiadask.store.files import Store
    from gaiadask.store.paths import RunPaths

    store = Store(config.store)
    console.print(f"report: {store.uri_of(RunPaths(config.name).report)}", soft_wrap=True)


if __name__ == "__main__":
    main()
