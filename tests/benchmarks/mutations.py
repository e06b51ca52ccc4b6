"""Puts small errors into the code, one at a time, and prints which of them the tests notice.

    python tests/benchmarks/mutations.py                                         # a sample of each module's mutants
    python tests/benchmarks/mutations.py gaiadask/split.py --mutants 0           # every one of a module's
    python tests/benchmarks/mutations.py --markdown docs/mutations.md            # the page of the scores

A mutant is a module with one error (tests/mutants.py): a `<` that became `<=`, a call that is missing, two arguments swapped.
The tests of a module run once as it is, which shows which lines each of them comes by and how long it takes; then, for each
mutant, those that come by its line, the quickest first, until one fails. A mutant that none of them notices survives: a test is
missing, or the error makes no difference (REASONS). Everything runs in a copy of the tree. The libraries are imported once and
each mutant is a fork of that process, so that it costs seconds. Left out: tests that start a cluster, and integration tests.

mutmut 3 chooses tests by itself, from one run of all of them, and rewrites every function as a branch over its mutants, which
pydantic's records and what is pickled to workers do not survive; cosmic-ray starts an interpreter a mutant, 8 s of imports here.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from mutants import Mutant, mutants

ROOT = Path(__file__).parents[2]

MODULES: dict[str, tuple[str, ...]] = {
    "gaiadask/split.py": ("split", "batches", "statistics", "evaluate", "which_stars"),
    "gaiadask/catalogue.py": ("catalogue", "ingest", "validate"),
    "gaiadask/ingest.py": ("ingest", "splitting", "validate"),
    "gaiadask/ingest_plan.py": ("ingest", "splitting", "stages"),
    "gaiadask/ledger.py": ("ingest", "splitting"),
    "gaiadask/inputs/transform.py": ("transform", "encode_decode", "encoding", "batches"),
    "gaiadask/sample.py": ("sample", "run"),
    "gaiadask/product.py": ("product", "sample", "encode_decode"),
    "gaiadask/store/files.py": ("store", "product", "catalogue"),
    "gaiadask/store/lease.py": ("store", "product"),
    "gaiadask/store/artifact.py": ("store", "model", "prior"),
    "gaiadask/store/manifest.py": ("manifest", "product", "run"),
    "gaiadask/store/paths.py": ("store", "catalogue", "ingest", "pipeline"),
}
"""For each module the test files (tests/test_NAME.py) that are to notice its errors."""

REASONS: dict[tuple[str, str], str] = {}
"""Of survivors that make no difference, or none that a test should hold fast: module and the words "before → after" begin with."""

_CLUSTERS = {"workers", "client", "start_workers"}
"""Fixtures that start processes."""
_SLOWEST = 4.0
"""A mutant's tests may take so many times as long as without it, and MARGIN_S more: then it hangs, which is noticed too."""
_MARGIN_S = 20.0


@dataclass
class Survey:
    """What the tests of a module do where it is as it should be: the seconds of each, and the lines of the module that it comes by."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, set[int]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def of(self, mutant: Mutant) -> list[str]:
        """The tests that come by a mutant, the quickest first."""
        touched = set(range(mutant.line, mutant.last_line + 1))
        return sorted((test for test, lines in self.lines.items() if lines & touched), key=lambda test: self.seconds[test])


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant. by: the test that noticed it, "it hangs" or "an import fails"; empty: it survived."""

    module: str
    line: int
    before: str
    after: str
    by: str
    tests: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.change[:110]}"

    @property
    def change(self) -> str:
        return f"{' '.join(self.before.split())} → {' '.join(self.after.split())}"

    @property
    def reason(self) -> str:
        return next((r for (module, start), r in REASONS.items() if module == self.module and self.change.startswith(start)), "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(MODULES), help="of MODULES (default: all)")
    parser.add_argument("--mutants", type=int, default=60, help="a module, drawn at random; 0: every one (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--record", type=Path, help="a file of JSON lines that keeps what became of each mutant")
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    with copied_tree() as tree:
        imported(tree)
        made = small_run_made(tree)
        for module in options.modules:
            for outcome in run_module(tree, made, module, options.mutants, options.seed):
                outcomes.append(outcome)
                print(f"{outcome}: {outcome.by or 'SURVIVES'} ({outcome.seconds:.1f} s)", flush=True)
                if options.record:
                    with options.record.open("a") as file:
                        file.write(json.dumps(asdict(outcome)) + "\n")
    print(report(outcomes))
    return 0


# The copy, and the process that each mutant is a fork of --------------------------------------------------------------------
@contextlib.contextmanager
def copied_tree() -> Iterator[Path]:
    """A copy of what the tests need; the current folder meanwhile."""
    with tempfile.TemporaryDirectory(prefix="gaiadask-mutations-") as folder:
        tree = Path(folder) / "tree"
        ignored = shutil.ignore_patterns("__pycache__", ".*", "demo*", "*.egg-info")
        for name in ("gaiadask", "flows", "tests", "docs", "deploy"):
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
            shutil.copy(ROOT / name, tree / name)
        os.chdir(tree)
        yield tree
        os.chdir(ROOT)


def imported(tree: Path) -> None:
    """Import every library that the code and the tests use, and forget the code and the tests: forks import these anew."""
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    of_the_tree = (ROOT, ROOT / "tests", Path(__file__).parent)
    sys.path[:] = [str(tree), str(tree / "tests"), *(path for path in sys.path if Path(path).resolve() not in of_the_tree)]
    own = set(sys.modules)
    tested = {f"test_{name}": None for names in MODULES.values() for name in names}
    for name in ("gaiadask.cli", "gaiadask.stages.engine", "conftest", *tested):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    for name in set(sys.modules) - own:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tree)) or name.split(".")[0] == "gaiadask":
            del sys.modules[name]
    from hypothesis import Phase, settings

    # The same examples each time, and none sought that is shorter.
    settings.register_profile("mutations", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate), deadline=None)
    settings.load_profile("mutations")


def forked(work: Callable[[], object], limit_s: float) -> Any:
    """What `work` returns in a fork of this process, which may not print; TimeoutError where it takes longer, with all that it began killed."""
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
                time.sleep(0.02)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # what it left behind
        answer.seek(0)
        content = answer.read()
    return pickle.loads(content) if content else None


def small_run_made(tree: Path) -> Path:
    """The store of the tests' small run, made once: forks take a copy of it."""
    store = tree.parent / "made" / "store"

    def make() -> None:
        import small_run

        small_run.make_run(small_run.small_config(store))

    forked(make, 600)
    assert store.exists(), "the small run cannot be made"
    return store


def _take_the_made_run(made: Path) -> None:
    import small_run

    make_run = small_run.make_run

    def copied_or_made(config: Any, *stages: str) -> None:
        if not stages and config == small_run.small_config(config.store):
            shutil.copytree(made, config.store)
        else:
            make_run(config, *stages)

    small_run.make_run = copied_or_made


# A module -----------------------------------------------------------------------------------------------------------------
def run_module(tree: Path, made: Path, module: str, most: int, seed: int) -> Iterator[Outcome]:
    """The outcome of some of a module's mutants (0: of all)."""
    path = tree / module
    text = path.read_text(encoding="utf-8")
    files = [f"tests/test_{name}.py" for name in MODULES[module] if (tree / f"tests/test_{name}.py").exists()]
    survey = forked(lambda: surveyed(path, made, files), 1_200)
    assert survey is not None and not survey.failed, f"the tests of {module} fail as it is: {survey and survey.failed}"
    every = mutants(text)
    drawn = sorted(random.Random(f"{seed}{module}").sample(range(len(every)), most)) if 0 < most < len(every) else range(len(every))
    tested = f"{len(survey.lines)} tests of {sum(survey.seconds.values()):.0f} s"
    print(f"{module}: {len(drawn)} of {len(every)} mutants, {tested}", flush=True)
    try:
        for number in drawn:
            mutant = every[number]
            tests = survey.of(mutant)
            path.write_text(mutant.text, encoding="utf-8")
            began = time.monotonic()
            by = noticed(made, tests, _MARGIN_S + _SLOWEST * sum(survey.seconds[t] for t in tests)) if tests else ""
            yield Outcome(module, mutant.line, mutant.before, mutant.after, by, len(tests), time.monotonic() - began)
    finally:
        path.write_text(text, encoding="utf-8")


def noticed(made: Path, tests: Sequence[str], limit_s: float) -> str:
    """What noticed the mutant that is in the tree now, empty where nothing did."""
    try:
        result = forked(lambda: _failing(made, tests), limit_s)
    except TimeoutError:
        return "it hangs"
    return "an import fails" if result is None else str(result)


def _failing(made: Path, tests: Sequence[str]) -> str:
    """The first of these tests that fails, empty where all pass."""
    _take_the_made_run(made)
    plugin = _InOrder(tests)
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *files], plugins=[plugin])
    return plugin.failed or ("" if code == pytest.ExitCode.OK else "an import fails")


class _InOrder:
    """Runs these tests alone, in this order, and tells which one failed."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.number = {test: number for number, test in enumerate(tests)}
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.number), key=lambda item: self.number[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid


def surveyed(path: Path, made: Path, files: Sequence[str]) -> Survey:
    """Run the tests of these files, and see which of them come by which lines of the module."""
    survey = _Surveyor(str(path))  # first: a module's own lines run when it is imported
    _take_the_made_run(made)
    pytest.main(["-q", "-p", "no:cacheprovider", "--no-header", *files], plugins=[survey])
    return survey.survey


class _Surveyor:
    """Notes the lines of one file that each test comes by. What a fixture of several tests does, or the import of a test's module,
    counts for all of these tests."""

    def __init__(self, path: str) -> None:
        import threading

        self.path, self.now, self.survey = path, set[int](), Survey()
        self.of_fixtures: defaultdict[str, set[int]] = defaultdict(set)
        self.of_imports: set[int] = set()
        sys.settrace(self._call)
        threading.settrace(self._call)

    def _call(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename == self.path else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        self.now.add(frame.f_lineno)
        return self._line

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.of_imports, self.now = self.now, set()
        items[:] = [item for item in items if not _CLUSTERS & set(getattr(item, "fixturenames", ()))]

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        before, self.now = self.now, set()
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                self.of_fixtures[fixturedef.argname] |= self.now
            self.now |= before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.now, began = set(), time.monotonic()
        try:
            return (yield)
        finally:
            self.survey.seconds[item.nodeid] = time.monotonic() - began
            self.survey.lines[item.nodeid] = self.now.union(
                self.of_imports, *(self.of_fixtures[name] for name in getattr(item, "fixturenames", ()))
            )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.survey.failed.append(report.nodeid)


# What came of it ------------------------------------------------------------------------------------------------------------
def report(outcomes: Sequence[Outcome]) -> str:
    """Scores and survivors, as markdown."""
    modules = list(dict.fromkeys(outcome.module for outcome in outcomes))
    lines = ["| module | mutants | noticed | share |", "| --- | ---: | ---: | ---: |"]
    for name in (*modules, "together"):
        own = [outcome for outcome in outcomes if name in (outcome.module, "together")]
        found = sum(bool(outcome.by) for outcome in own)
        lines.append(f"| {name} | {len(own)} | {found} | {found / max(1, len(own)):.0%} |")
    lines += ["", "| survivor | change | why |", "| --- | --- | --- |"]
    for outcome in outcomes:
        if not outcome.by:
            why = outcome.reason or ("no test comes by" if not outcome.tests else "?")
            change = outcome.change.replace("|", "\\|")
            lines.append(f"| {outcome.module}:{outcome.line} | `{change if len(change) < 160 else change[:157] + '…'}` | {why} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
