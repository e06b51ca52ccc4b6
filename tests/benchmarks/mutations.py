"""Puts small errors into the code, one at a time, and prints which of them the tests notice.

    python tests/benchmarks/mutations.py                                   # a sample of each module's mutants
    python tests/benchmarks/mutations.py gaiadask/split.py --mutants 0     # every one of a module's
    python tests/benchmarks/mutations.py --record r.jsonl --survivors      # only what is new, and what survived

A mutant is a module with one error in a function (tests/mutants.py): a `<` that became `<=`, a call that is missing, two arguments
swapped. The tests first run without it, which shows which lines each of them comes by and how long it takes; then, for each mutant,
those of its module that come by its line, the quickest first, until one fails. A mutant that none of them notices survives: a test is
missing, or the error makes no difference (REASONS). Left out are tests that start a cluster, integration tests, and what is not in
a function (constants, fields, defaults).

Nothing is written into the tree: code and tests are imported once, each mutant is a fork of that process, and there the functions
get the code of the mutant. So it costs little more than its tests. mutmut 3 chooses the tests by one run of them all and rewrites
every function as a branch over its mutants, which pydantic's records and what is pickled for workers do not survive; cosmic-ray
starts an interpreter a mutant, 8 s of imports here.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from _pytest.runner import runtestprotocol
from mutants import Mutant, mutants

ROOT = Path(__file__).parents[2]

MODULES: dict[str, tuple[str, ...]] = {
    "gaiadask/split.py": ("split", "batches", "catalogue"),
    "gaiadask/catalogue.py": ("catalogue", "ingest", "validate"),
    "gaiadask/ingest.py": ("ingest", "splitting", "validate"),
    "gaiadask/ingest_plan.py": ("ingest", "splitting"),
    "gaiadask/ledger.py": ("ingest", "splitting"),
    "gaiadask/inputs/transform.py": ("transform", "encode_decode", "encoding", "batches", "sample"),
    "gaiadask/sample.py": ("sample", "run", "product"),
    "gaiadask/product.py": ("product", "sample", "encode_decode"),
    "gaiadask/store/files.py": ("store", "attempts", "product", "catalogue"),
    "gaiadask/store/attempts.py": ("store", "attempts"),
    "gaiadask/store/parquet.py": ("store", "attempts", "catalogue"),
    "gaiadask/store/lease.py": ("store", "lease"),
    "gaiadask/store/artifact.py": ("store", "prior"),
    "gaiadask/store/manifest.py": ("manifest", "product"),
    "gaiadask/store/paths.py": ("store", "catalogue", "ingest", "product", "tune"),
}
"""For each module the test files (tests/test_NAME.py) that are to notice its errors."""

_SAME = "the same result"
REASONS: dict[tuple[str, str], str] = {
    ("hash64", "with np.errstate("): "without it numpy warns of scalars, no more",
    ("chosen", "hash64(source_id) / 2.0 ** 64 < below"): "a hash that is the bound itself: one star in 2^53",
    ("hash_bound", ""): _SAME,
    ("remove", "self._own_files() → pass"): "looked at again under the lease",
    ("sample_block", "0 → 1"): "`drawn` begins at 1: a number that an error tells",
    ("_drawn", "0 → -1"): "what stands below a null",
    ("shards", ""): "about twenty shards",
    ("ingest_chunk", "12 → 13"): "letters of a random name",
    ("ingest_chunk", "3 → 4"): "digits of a time that is told",
    ("ingest_chunk", "store.remove("): "parts of an earlier attempt are in no record, and go with all parts in the end",
    ("flush", "True → False"): _SAME,
    ("result", ""): "of a stage's name in the words of an error",
    ("places", "raise Conf"): "open: no test asks for magnitudes of a model without a flux",
    ("contains", "keep &= healpix("): "positions are drawn within the tile already",
    ("sample_block", "0 → -1"): "`drawn` begins at -1: a number that an error tells",
    ("reading", "self._attempt("): "in the words of an error and in how it is tried again; the result is the same",
    ("bytes_of", "0 → 1"): "open: the size of a file whose size the store does not tell",
    ("read_jsons", "2 → 3"): "two files at once or one by one",
    ("_opened_parquet", "True → False"): "only slower, on object stores",
    ("reason", "text → not text"): "the words of an error that has none",
    ("close", "self._file.close()"): "the handle is closed when it is collected",
    ("__exit__", "self.close()"): "the handle is closed when it is collected",
    ("_boot", "try: "): "systems without /proc",
    ("__enter__", "True → False"): "a process that ends by an exception would wait for the thread: no test ends so",
    ("__exit__", "with contextlib.suppress("): "open: a store that fails while the lease is given back",
    ("_renew", "LEASE_S / "): "how long one renewal is tried again",
    ("tuning", "return"): "tests of searches run on a cluster",
    ("sigma", "with np.errstate("): "without it numpy warns, no more",
    ("_position", "np.clip(columns[DEC], -90.0, 90.0)"): _SAME,
    ("_rounded_to", ""): "limits of flags, which no model encodes",
}
"""Of survivors that make no difference, or none that a test should hold fast: function and the words that the change begins with."""

_CLUSTERS = {"workers", "client", "start_workers"}
"""Fixtures that start processes."""
_SLOWEST = 3.0
"""A mutant's tests may take so many times as long as without it, and _MARGIN_S more: then it hangs, which is noticed too."""
_MARGIN_S = 10.0


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant. by: the test that noticed it, or "it hangs" or "it ends the process"; empty: it survived."""

    key: str
    module: str
    line: int
    before: str
    after: str
    by: str
    tests: int
    seconds: float
    function: str = ""

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.change[:110]}"

    @property
    def change(self) -> str:
        return f"{' '.join(self.before.split())} → {' '.join(self.after.split())}"

    @property
    def reason(self) -> str:
        return next((r for (name, start), r in REASONS.items() if name == self.function and self.change.startswith(start)), "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(MODULES), help="of MODULES (default: all)")
    parser.add_argument("--mutants", type=int, default=60, help="a module, drawn at random; 0: every one (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--seconds", type=float, default=20, help="of tests a mutant, the quickest first (default 20)")
    parser.add_argument(
        "--record", type=Path, help="a file of JSON lines that keeps what became of each mutant: it is not run again"
    )
    parser.add_argument("--survivors", action="store_true", help="run those again that survived, with the tests of now")
    options = parser.parse_args()
    held = read_record(options.record)
    every = {module: drawn(ROOT / module, options.mutants, options.seed) for module in options.modules}
    waiting = {
        module: [m for m in some if m.key not in held or (options.survivors and not held[m.key].by)]
        for module, some in every.items()
    }

    def keep(outcome: Outcome) -> None:
        say(f"{outcome}: {outcome.by or 'SURVIVES'} ({outcome.seconds:.1f} s)")
        held[outcome.key] = outcome
        if options.record:
            with options.record.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")

    run(waiting, options.seconds, keep)
    known = [(mutant, held[mutant.key]) for some in every.values() for mutant in some if mutant.key in held]
    print(report([replace(outcome, line=mutant.line, function=mutant.function) for mutant, outcome in known]))
    return 0


def read_record(path: Path | None) -> dict[str, Outcome]:
    """What the record holds, the last of each mutant, by its key."""
    lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
    return {outcome.key: outcome for line in lines for outcome in [Outcome(**json.loads(line))]}


def drawn(path: Path, most: int, seed: int) -> list[Mutant]:
    """Some of a module's mutants (0: all), in the order of their lines: nearly the same ones after the module has changed a little."""
    every = mutants(path.read_text(encoding="utf-8"))
    order = sorted(every, key=lambda mutant: hashlib.sha256(f"{seed} {mutant.key}".encode()).digest())
    return sorted(order[: most or None], key=lambda mutant: mutant.line)


# The process that each mutant is a fork of -----------------------------------------------------------------------------------
def run(waiting: dict[str, list[Mutant]], seconds: float, keep: Callable[[Outcome], None]) -> None:
    """Run these mutants of each module."""
    names = dict.fromkeys(name for module, some in waiting.items() if some for name in MODULES[module])
    if not names:
        return
    import pyarrow as pa
    import torch
    from hypothesis import HealthCheck, Phase, settings

    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    # The same examples each time, and none sought that is shorter.
    settings.register_profile(
        "mutations", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate), deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    settings.load_profile("mutations")
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="gaiadask-mutations-") as folder:
        _make_the_small_run_once(Path(folder) / "store")
        files = [f"tests/test_{name}.py" for name in names]
        options = ["-q", "-p", "no:cacheprovider", "-s", f"--basetemp={folder}/tests"]
        with contextlib.redirect_stdout(io.StringIO()) as told:
            ended = pytest.main([*options, *files], plugins=[_Loop(waiting, seconds, keep)])
        assert ended in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED), told.getvalue()


def _make_the_small_run_once(store: Path) -> None:
    """The store of the tests' small run: it is made here, and forks copy it."""
    import small_run

    make_run = small_run.make_run
    forked(lambda: make_run(small_run.small_config(store)), 600)
    assert store.exists(), "the small run cannot be made"

    def copied_or_made(config: Any, *stages: str) -> None:
        if not stages and config == small_run.small_config(config.store):
            shutil.copytree(store, config.store)
        else:
            make_run(config, *stages)

    small_run.make_run = copied_or_made


def forked(work: Callable[[], object], limit_s: float) -> Any:
    """What `work` returns in a fork of this process, which may not print; None where it ends the process. Raises TimeoutError where
    it takes longer; what it began is killed."""
    with tempfile.TemporaryFile() as answer:
        pid = os.fork()
        if not pid:
            try:
                os.setsid()
                silent = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(silent, stream)
                answer.write(pickle.dumps(work()))
                answer.flush()
            finally:
                os._exit(0)
        ends = time.monotonic() + limit_s
        try:
            while not os.waitpid(pid, os.WNOHANG)[0]:
                if time.monotonic() > ends:
                    os.killpg(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    raise TimeoutError
                time.sleep(0.01)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        answer.seek(0)
        content = answer.read()
    return pickle.loads(content) if content else None


# A module ---------------------------------------------------------------------------------------------------------------------
class _Loop:
    """Instead of running the tests that were collected, runs those of each mutant."""

    def __init__(self, waiting: dict[str, list[Mutant]], seconds: float, keep: Callable[[Outcome], None]) -> None:
        self.waiting, self.seconds, self.keep = waiting, seconds, keep

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        assert not session.testsfailed, "a test file cannot be imported"
        items = [item for item in session.items if not _CLUSTERS & set(getattr(item, "fixturenames", ()))]
        paths = {module: str(ROOT / module) for module, some in self.waiting.items() if some}
        survey = forked(lambda: surveyed(set(paths.values()), items), 3_600)
        assert survey is not None, "the tests end the process"
        # Their time limits, on a machine that is busy; or they are about the files of the tree.
        failed = ", ".join(items[i].nodeid for i in survey.failed) or "none"
        say(f"{len(items)} tests of {sum(survey.seconds):.0f} s; left out, for they fail as it is: {failed}")
        for module, path in paths.items():
            functions = [f for f in gc.get_objects() if type(f) is FunctionType and f.__code__.co_filename == path]
            assert functions, f"{path} was not imported: is another gaiadask before it on the path?"
            files = {f"test_{name}.py" for name in MODULES[module]}
            own = {number for number, item in enumerate(items) if item.path.name in files}
            say(f"{module}: {len(self.waiting[module])} mutants, {len(own)} tests")
            for mutant in self.waiting[module]:
                chosen = survey.of(path, mutant, own, self.seconds)
                began, limit_s = time.monotonic(), _MARGIN_S + _SLOWEST * sum(survey.seconds[i] for i in chosen)
                by = noticed(path, mutant, functions, [items[i] for i in chosen], limit_s) if chosen else ""
                seconds = round(time.monotonic() - began, 1)
                self.keep(Outcome(mutant.key, module, mutant.line, mutant.before, mutant.after, by, len(chosen), seconds))
        return True


def say(line: str) -> None:
    """Print it: pytest has the standard output."""
    print(line, file=sys.__stdout__, flush=True)


def noticed(path: str, mutant: Mutant, functions: Sequence[FunctionType], items: Sequence[pytest.Item], limit_s: float) -> str:
    """What notices the mutant; empty where nothing does."""

    def first_failure() -> str:
        put_in(path, mutant, functions)
        return next((item.nodeid for item, failed in results(items) if failed), "")

    try:
        by = forked(first_failure, limit_s)
    except TimeoutError:
        return "it hangs"
    return "it ends the process" if by is None else str(by)


def results(items: Sequence[pytest.Item]) -> Iterator[tuple[pytest.Item, bool]]:
    """Each test, and whether it fails, as they are run."""
    for item, following in zip(items, [*items[1:], None], strict=True):
        yield item, any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


def put_in(path: str, mutant: Mutant, functions: Sequence[FunctionType]) -> None:
    """Give the module's functions the mutant's code."""
    found: dict[tuple[str, int], CodeType] = {}
    left = [compile(mutant.text, path, "exec", flags=0, dont_inherit=True)]
    while left:
        code = left.pop()
        found[code.co_qualname, code.co_firstlineno] = code
        left += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    for function in functions:
        code = function.__code__
        function.__code__ = found.get((code.co_qualname, code.co_firstlineno), code)


# Which tests come by which lines ------------------------------------------------------------------------------------------------
Line = tuple[str, int]
"""A line of a file."""


@dataclass
class Survey:
    """Of each test, by number: its seconds, and the lines of the modules that it comes by; and which of them fail."""

    seconds: list[float] = field(default_factory=list)
    lines: list[set[Line]] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)

    def of(self, path: str, mutant: Mutant, tests: set[int], most_s: float) -> list[int]:
        """Which of these tests come by a mutant, the quickest first, as many as take so long together; at least five."""
        touched = {(path, line) for line in range(mutant.line, mutant.last_line + 1)}
        found = sorted((i for i in tests - set(self.failed) if self.lines[i] & touched), key=lambda i: self.seconds[i])
        return [i for n, i in enumerate(found) if n < 5 or sum(self.seconds[j] for j in found[: n + 1]) <= most_s]


def surveyed(paths: set[str], items: Sequence[pytest.Item]) -> Survey:
    """Run the tests, and see which of them come by which lines of these files."""
    survey, tracer = Survey(), _Tracer(paths)
    if items:
        items[0].config.pluginmanager.register(tracer)
    began = time.monotonic()
    for number, (item, failed) in enumerate(results(items)):
        survey.seconds.append(time.monotonic() - began)
        fixtures = (tracer.of_fixtures[name] for name in getattr(item, "fixturenames", ()))
        survey.lines.append(tracer.now.union(*fixtures))
        survey.failed += [number] if failed else []
        tracer.now, began = set(), time.monotonic()
    return survey


class _Tracer:
    """Notes the lines of some files that are come by. What a fixture of several tests does counts for all of these."""

    def __init__(self, paths: set[str]) -> None:
        self.paths, self.now = paths, set[Line]()
        self.of_fixtures: defaultdict[str, set[Line]] = defaultdict(set)
        sys.settrace(self._call)
        threading.settrace(self._call)

    def _call(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename in self.paths else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        self.now.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        before, self.now = self.now, set()
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                self.of_fixtures[fixturedef.argname] |= self.now
            self.now |= before


# What came of it ------------------------------------------------------------------------------------------------------------
def report(outcomes: Sequence[Outcome]) -> str:
    """Scores and survivors, as markdown."""
    modules = list(dict.fromkeys(outcome.module for outcome in outcomes))
    lines = ["| module | mutants | noticed | share |", "| --- | ---: | ---: | ---: |"]
    for name in (*modules, "together"):
        own = [outcome for outcome in outcomes if name in (outcome.module, "together")]
        found = sum(bool(outcome.by) for outcome in own)
        lines.append(f"| {name} | {len(own)} | {found} | {found / max(1, len(own)):.0%} |")
    lines += ["", "| survivor | in | change | why |", "| --- | --- | --- | --- |"]
    for outcome in outcomes:
        if not outcome.by:
            why = outcome.reason or ("no test comes by" if not outcome.tests else "?")
            change = outcome.change.replace("|", "\\|")
            change = change if len(change) < 110 else change[:107] + "…"
            lines.append(f"| {outcome.module}:{outcome.line} | {outcome.function} | `{change}` | {why} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
