"""What the terminal shows: numbers, times, and bars that end at their end."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from rich.console import Console

from gaiadask import terminal
from gaiadask.errors import DataError, counted
from gaiadask.progress import reported
from gaiadask.store.manifest import StageEntry
from gaiadask.terminal import amount, duration, progress_bars, table_of_stages


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is written to a terminal of 80 columns."""
    handlers, level = list(logging.getLogger().handlers), logging.getLogger("gaiadask").level
    text = io.StringIO()
    monkeypatch.setattr(terminal, "errors", Console(file=text, force_terminal=True, width=80, color_system=None))
    yield text
    logging.getLogger().handlers[:] = handlers
    logging.getLogger("gaiadask").setLevel(level)


def last_line(screen: io.StringIO) -> str:
    return screen.getvalue().rstrip("\x1b[?25h").rstrip().splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (7, "7"),
        (99.5, "99.5"),
        (950, "950"),
        (1000, "1k"),
        (23_400, "23.4k"),
        (8_001_536, "8M"),
        (1.69e9, "1.69G"),
        (2e12, "2T"),
    ],
)
def test_amounts_are_short(number: float, shown: str) -> None:
    assert amount(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.83, "0.8 s"), (12.3, "12 s"), (59.9, "60 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_bar_ends_at_its_end_where_fewer_were_there_than_expected(screen: io.StringIO) -> None:
    with progress_bars(verbose=False, quiet=False) as bars, reported(bars, "fetch", 450_000, "stars"):
        bars.advance("fetch", 234_341, "44.2 MB")
    assert "234k/234k stars" in last_line(screen)
    assert len(last_line(screen)) <= 80


@pytest.mark.parametrize("width", [80, 120])
def test_a_bar_is_one_line_and_whole(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(terminal.errors, "_width", width)
    with (
        progress_bars(verbose=False, quiet=False) as bars,
        reported(bars, "validation stars", 24, "partitions"),
        reported(bars, "train", 8e6, "stars"),
    ):
        bars.advance("validation stars", 24)
        bars.advance("train", 8e6, "loss 30.08")
    *_, validation, train = screen.getvalue().rstrip("\x1b[?25h").rstrip().splitlines()
    assert "validation stars" in validation and "24/24 partitions" in validation
    assert "8M/8M stars" in train and "loss 30.08" in train
    assert max(len(validation), len(train)) <= width


def test_a_table_of_stages_cuts_no_path() -> None:
    path = "/a/folder/with/a/long/name/store/runs/demo/report.html"
    entry = StageEntry(key="", finished="2026-11-27T11:14:00+00:00", seconds=1.0, inputs={}, result={}, summary=path)
    text = io.StringIO()
    Console(file=text, width=70).print(table_of_stages("a run", {"report": entry}, ["report"]))
    assert path in "".join(line.split("│")[-2].strip() for line in text.getvalue().splitlines() if line.count("│") == 5)


@pytest.mark.parametrize(("number", "told"), [(0, "0 files"), (1, "1 file"), (1_200, "1,200 files")])
def test_one_is_told_without_an_s(number: int, told: str) -> None:
    assert counted(number, "file") == told


def test_a_percentage_ends_at_a_hundred(screen: io.StringIO) -> None:
    with progress_bars(verbose=False, quiet=False) as bars, reported(bars, "prior", 100, "%"):
        bars.advance("prior", 98.7)
    assert "100/100 %" in last_line(screen)


def test_a_bar_of_what_failed_does_not_end_at_its_end(screen: io.StringIO) -> None:
    with (
        pytest.raises(DataError),
        progress_bars(verbose=False, quiet=False) as bars,
        reported(bars, "merge", 24, "partitions"),
    ):
        bars.advance("merge", 3)
        raise DataError("no")
    assert "3/24 partitions" in last_line(screen)


def test_quiet_draws_nothing(screen: io.StringIO) -> None:
    with progress_bars(verbose=False, quiet=True) as bars, reported(bars, "merge", 24, "partitions"):
        bars.advance("merge", 24)
    assert not screen.getvalue().strip()
