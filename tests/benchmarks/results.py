"""Runs benchmarks and writes what they print into the pages of docs/: every table there that has a mark `<!-- results: NAME -->`.

    python tests/benchmarks/results.py                        # all of them: some four hours on two cores with nothing else to do
    python tests/benchmarks/results.py loader memory          # these
    python tests/benchmarks/results.py --list                 # names, pages, commands
    python tests/benchmarks/results.py --folder /data/bench   # keeps mock catalogues for the next time

A table between two marks is what the command above it printed, with the day, the processor and the version: nobody types a figure.
`tests/test_benchmarks.py` checks that pages and this list have the same marks and commands.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import psutil

import gaiadask

ROOT = Path(__file__).resolve().parents[2]


class Result(NamedTuple):
    """A table of a page: the benchmark that prints it, and its arguments; `folder` names the option that takes the folder of mock stars."""

    page: str
    script: str
    arguments: str = ""
    folder: str | None = None

    @property
    def command(self) -> str:
        """What a reader types to have the table."""
        return f"python tests/benchmarks/{self.script}.py {self.arguments}".strip()


RESULTS = {
    "training": Result("speed", "training_speed", "--stars 10400000 --shown 3000000 --batches 4096 8192 --repeats 2", "--folder"),
    "loader": Result("speed", "loader_speed", "--stars 10400000 --repeats 2", "--store"),
    "statistics": Result("speed", "statistics_speed", "--repeats 1", "--folder"),
    "encode": Result("speed", "encode_speed", "--stars 10400000 --repeats 1", "--folder"),
    "two_workers": Result("speed", "two_workers", "--stars 2000000 --rounds 1", "--folder"),
    "flows": Result("speed", "flow_speed"),
    "memory": Result("speed", "memory", "--small 600000 --large 2000000 --repeats 1"),
    "catalogue_memory": Result("speed", "catalogue_memory", "", "--folder"),
    "catalogue_memory_all": Result("speed", "catalogue_memory", "--all-columns --stars 1000000 10000000", "--folder"),
    "auc_of_one_origin": Result("quality", "auc_of_one_origin", "--pairs 50 --stars 80 500"),
    "prefect": Result("cluster", "prefect_chunks"),
    "bulk": Result("speed", "bulk_ingest"),
}
"""By name, in the order in which they run."""


def begin_of(name: str) -> str:
    return f"<!-- results: {name} -->\n"


END = "<!-- end of results -->\n"


def names_in(page: str) -> list[str]:
    """The results that a page has places for."""
    return [line.split()[2] for line in page.splitlines() if line.startswith("<!-- results: ")]


def block(result: Result, printed: str, when: str) -> str:
    """What stands between the marks: the command, when and where it ran, and what it printed."""
    return f"\n    {result.command}\n\n{when}\n\n{printed.strip()}\n\n"


def with_result(page: str, name: str, text: str) -> str:
    """The page with this text between the marks of a result; ValueError where it has no such marks."""
    before, begin, rest = page.partition(begin_of(name))
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no marks {begin_of(name).strip()} … {END.strip()}")
    return before + begin + text + end + after


def processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else "a processor whose name the system does not tell"


def run(name: str, result: Result, folder: Path) -> str:
    """Run one benchmark; the text for its page. Raises `subprocess.CalledProcessError` where it fails."""
    command = [sys.executable, *result.command.split()[1:]]
    if result.folder:
        command += [result.folder, str(folder / result.script)]
    load = os.getloadavg()[0]
    print(f"{name}: {result.command}", file=sys.stderr, flush=True)
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    when = (
        f"{datetime.date.today().isoformat()}, gaiadask {gaiadask.__version__}, {psutil.cpu_count()} cores of {processor()}; "
        f"load before it began {load:.1f}."
    )
    return block(result, printed, when)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*RESULTS, []], default=[], help="all by default")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("--folder", type=Path, help="where mock catalogues are kept (default: a temporary folder)")
    options = parser.parse_args()
    if options.list:
        for name, result in RESULTS.items():
            print(f"{name:16} docs/{result.page}.md  {result.command}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.names or RESULTS:
            result = RESULTS[name]
            text = run(name, result, options.folder or Path(temporary))
            page = ROOT / "docs" / f"{result.page}.md"
            page.write_text(with_result(page.read_text(encoding="utf-8"), name, text), encoding="utf-8")


if __name__ == "__main__":
    main()
