"""What the command line shows: progress bars, results and errors as a person reads them."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from rich import filesize
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from gaiadask.errors import GaiadaskError, counted
from gaiadask.records import JsonObject
from gaiadask.store.manifest import StageEntry

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from gaiadask.citations import Reference
    from gaiadask.stages.forecast import Forecast
    from gaiadask.training.search import SearchRecord
    from gaiadask.validate import Finding

# Plain: in paths, names and messages [brackets] and :colons: are what they are, no styles and no pictures.
console = Console(markup=False, emoji=False, highlight=False)
errors = Console(markup=False, emoji=False, highlight=False, stderr=True)

_THOUSAND = 1000
_BAR, _SHORT_BAR, _WIDE = 16, 6, 100
"""Characters of a progress bar, of one in a narrow window, and of a window that is not narrow."""


def print_error(kind: str, error: GaiadaskError, config: str) -> None:
    """Print an error on stderr; commands in it are of this configuration (`gaia.toml --name other`), so that they can be pasted."""
    message = str(error).replace(" CONFIG", f" {config}") if config else str(error)
    errors.print(Text.assemble((f"{kind}:", "bold red"), f" {message}"), soft_wrap=True)


def print_stages(entries: Mapping[str, StageEntry], stages: list[str], started: str) -> None:
    """Print what each of these stages made, one line each.

    Args:
        entries: of the run's manifest.
        stages: that were to run.
        started: ISO 8601, UTC: what was finished before was there already.
    """
    for stage in stages:
        entry = entries[stage]
        when = f"already there, {entry.moment}" if entry.finished < started else f"{duration(entry.seconds)}"
        line = Text.assemble((f"{stage:>11}", "bold"), f"  {entry.shown} ", (f"({when})", "dim"))
        console.print(line, soft_wrap=True)


def table_of_stages(title: str, entries: Mapping[str, StageEntry], stages: list[str]) -> Table:
    """What a run has made, a stage a row; stages that it has not made among them."""
    # Folded, not cut: a path is there to be copied.
    table = Table(Column("stage", overflow="fold"), "finished, UTC", "took", Column("result", overflow="fold"), title=title)
    for stage in stages:
        entry = entries.get(stage)
        cells = (entry.moment, duration(entry.seconds), entry.shown) if entry else ("–", "–", "not made yet")
        table.add_row(stage, *map(Text, cells))
    return table


def print_forecast(found: Forecast) -> None:
    """Print what a selection will take."""
    size = filesize.decimal
    margin = f", its margin {size(found.margin_bytes)}" if found.margin_bytes else ""
    console.print(
        f"{found.stars:,} stars (about) of {found.columns} columns from {found.source}\n"
        f"{counted(found.chunks, 'chunk')}; some {counted(found.partitions, 'partition')}\n"
        f"fetched {size(found.fetched_bytes)}; catalogue {size(found.catalogue_bytes)} on disk{margin}, "
        f"while it is made {size(found.peak_bytes)}",
        soft_wrap=True,
    )
    table = Table("stage", f"on {counted(found.workers, 'worker')}", "what takes that long")
    for stage in found.stages:
        table.add_row(stage.stage, "not measured" if stage.seconds is None else duration(stage.seconds), stage.bottleneck)
    console.print(table)


def print_search(record: SearchRecord, config: Path) -> None:
    """Print the candidates of a search, and the best one's options for the configuration file."""
    from gaiadask.training.search import options_toml, search_table

    head, rows = search_table(record)
    table = Table(*head, title=record.score)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    console.print(f"the best, for {config}:\n{options_toml(record.best_options)}")


def print_findings(whole: str, products: Sequence[str], findings: Sequence[Finding]) -> None:
    """Print what is wrong with files, or that nothing is.

    Args:
        whole: what was looked at, with its size.
        products: what the run has made of it.
        findings: everything that is wrong.
    """
    if not findings:
        console.print(f"complete and correct: {whole}{''.join(f'; {product}' for product in products)}")
        return
    table = Table("where", "what", title=f"{len(findings)} findings")
    for finding in findings:
        table.add_row(Text(finding.where), Text(finding.problem))
    console.print(table)


def print_citations(used: Sequence[Reference], acknowledgement: str, bibtex: bool) -> None:
    """Print what to cite.

    Args:
        used: the references.
        acknowledgement: that data ask for; "": none.
        bibtex: print BibTeX entries alone.
    """
    if bibtex:
        console.print("\n\n".join(reference.bibtex() for reference in used), soft_wrap=True)
        return
    console.print("\n".join(f"- {reference.text()}" for reference in used), soft_wrap=True)
    if acknowledgement:
        console.print(f"\nAcknowledgement, as ESA asks for it:\n\n{acknowledgement}", soft_wrap=True)
    console.print(f"\nand gaiadask {version('gaiadask')} (CITATION.cff in its repository).", soft_wrap=True)


def print_rows(title: str, rows: pa.Table, as_json: bool) -> None:
    """Print a small table of stars: whole numbers with all digits, others with four; or as JSON."""
    cells = _json_rows(rows)
    if as_json:
        print_json({title: [*cells]})
        return
    texts = [
        rows.column_names,
        *(["–" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x) for x in row.values()] for row in cells),
    ]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        # Not as a table, which would cut source_ids where the window is narrow.
        console.print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)), soft_wrap=True)


def _json_rows(rows: pa.Table) -> list[JsonObject]:
    # JSON knows no numbers that are not finite.
    return [
        {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        for row in rows.to_pylist()
    ]


def print_json(value: JsonObject) -> None:
    """Print JSON, for programs."""
    # Not by way of the console, which would break long lines.
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def duration(seconds: float) -> str:
    """Seconds as 0.8 s, 12 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def amount(number: float) -> str:
    """A count in at most five characters: 950, 23.4k, 8.00M, 1.69G."""
    for suffix in ("", "k", "M", "G"):
        if number < _THOUSAND:
            return f"{number:.3g}{suffix}" if number < 100 or suffix else f"{number:.0f}"
        number /= _THOUSAND
    return f"{number:.3g}T"


# Progress --------------------------------------------------------------------------------------------------------------
@contextmanager
def progress_bars(verbose: bool, quiet: bool) -> Iterator[Bars]:
    """Draw progress on stderr as long as the block, and print log records above the bars.

    Args:
        verbose: log every step.
        quiet: no bars, and of the log only warnings.
    """
    # A line a bar, of 80 characters too: rich would break the texts, and draw two.
    whole = Column(no_wrap=True)
    plain = partial(TextColumn, markup=False, table_column=whole)
    bar = BarColumn(bar_width=_BAR if errors.width >= _WIDE else _SHORT_BAR)
    columns = (
        plain("{task.description:>11}"), bar, _Done(whole), _Rate(whole), TimeElapsedColumn(whole),
        TimeRemainingColumn(compact=True, table_column=whole), plain("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=errors, refresh_per_second=4, disable=quiet) as bars:
        handler = RichHandler(console=bars.console, show_path=False, rich_tracebacks=False)
        logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s", force=True)
        logging.getLogger("gaiadask").setLevel(logging.INFO if verbose else logging.WARNING)
        # A request that is tried again is not worth a line; the error reports one that is given up.
        logging.getLogger("urllib3").setLevel(logging.WARNING if verbose else logging.ERROR)
        yield Bars(bars)


class _Done(ProgressColumn):
    """How much is done of how much, and its unit."""

    def render(self, task: Task) -> Text:
        return Text(f"{amount(task.completed)}/{amount(task.total or 0)} {task.fields['unit']}")


class _Rate(ProgressColumn):
    """Units a second, of late."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{amount(speed)}/s" if speed >= 1 else f"{speed:.2g}/s")


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

    def finish(self, task: str, whole: bool = True) -> None:
        number = self.ids[task]
        (state,) = (each for each in self.bars.tasks if each.id == number)
        if whole and state.fields["unit"] == "%":
            self.bars.update(number, completed=state.total)
        elif whole:
            # What was expected may have been an estimate: mock stars before the selection, a training that ended early.
            self.bars.update(number, total=state.completed)
        self.bars.stop_task(number)
