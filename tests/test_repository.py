"""The repository's own pages say what is there: modules, options, commands."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from types import ModuleType

import pytest
import yaml
from cli_text import cli_text
from measures import PACKAGES, ROOT

import gaiadask
from gaiadask import capacity
from gaiadask.config.sections import Config

CLI_TEXT = ROOT / "tests" / "data" / "cli.txt"


# CONTRIBUTING.md -----------------------------------------------------------------------------------------------------
def modules_in_the_tree() -> set[str]:
    """Paths of the modules, as the table names them: `archive/tap/adql`, `gaiadask/run`, `flows/gaia`."""
    paths = [path.relative_to(ROOT).with_suffix("") for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {re.sub(r"^gaiadask/(?=.*/)", "", path.as_posix()) for path in paths if path.name != "__init__"}


def modules_in_the_table() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+/)` \| ((?:`\w+` ?)+)\|", text, re.MULTILINE)
    return [room + module for room, modules in rows for module in re.findall(r"`(\w+)`", modules)]


def test_every_module_stands_once_in_the_table_of_contributing() -> None:
    listed = modules_in_the_table()
    missing, gone = sorted(modules_in_the_tree() - set(listed)), sorted(set(listed) - modules_in_the_tree())
    twice = [module for module, count in Counter(listed).items() if count > 1]
    assert not missing, f"CONTRIBUTING.md, 'How the house is laid out': add {', '.join(missing)} to the row of its room"
    assert not gone, f"CONTRIBUTING.md, 'How the house is laid out': {', '.join(gone)} is in the table, but there is no such module"
    assert not twice, f"CONTRIBUTING.md, 'How the house is laid out': {', '.join(twice)} stands in the table twice"


# docs/options.md -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def make_options() -> ModuleType:
    """docs/make_options.py as a module."""
    return module_of_docs("make_options")


def module_of_docs(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_option_is_in_the_docs(make_options: ModuleType) -> None:
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (?:\[([\w.]+)\]|At the top of the file)$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    missing = [
        f"[{section}] {option}"
        for section, model in make_options.sections(Config)
        for option, field in model.model_fields.items()
        if not make_options.is_section(field) and f"| `{option}` | " not in parts.get(section, "")
    ]
    assert not missing, f"docs/options.md lacks {', '.join(missing)}: `make docs` writes it"


def test_the_page_of_options_is_up_to_date(make_options: ModuleType) -> None:
    written = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert written == make_options.options_page(), "docs/options.md is not what the descriptions say: `make docs` writes it anew"


# docs/capacity.md ----------------------------------------------------------------------------------------------------
def test_the_page_of_capacity_is_up_to_date() -> None:
    make_capacity = module_of_docs("make_capacity")
    written = (ROOT / "docs" / "capacity.md").read_text(encoding="utf-8")
    assert written == make_capacity.capacity_page(capacity.read_rates()), "docs/capacity.md: `make docs` writes it anew"
    deploy = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    assert deploy == make_capacity.with_sizes(deploy, capacity.read_rates()), "deploy/README.md: `make docs` writes it anew"


def test_capacity_names_what_bounds_a_stage() -> None:
    make_capacity = module_of_docs("make_capacity")
    rates = capacity.Rates.model_validate(
        {
            "prices": {"worker_hour": 0.5, "gpu_hour": 4.0},
            "limits": {"store": 1000.0, "download": 10.0},
            "stages": [
                {"name": "encode", "takes": "the network", "shown": 3600, "store": 50.0, "worker": [{"rate": 1.0}], "gpu": [{}]}
            ],
        }
    )
    (stage,) = rates.stages
    assert capacity.estimate(rates, stage, 25, "worker", 1) == (1.0, "the network")
    assert capacity.estimate(rates, stage, 50, "worker", 4) == (0.5, "the network")
    assert capacity.estimate(rates, stage, 25, "worker", 1000) == (0.05, "the store")
    assert capacity.estimate(rates, stage, 25, "gpu", 1) is None
    assert "| encode | 8 GPUs | not measured | | |" in make_capacity.capacity_page(rates)
    wider = stage.model_copy(update={"worker": (*stage.worker, capacity.Rate(rate=0.5, columns=100))})
    assert capacity.estimate(rates, wider, 25, "worker", 1) == (1.0, "the network")
    assert capacity.estimate(rates, wider, 94, "worker", 1) == (pytest.approx(1.88), "the network"), "by the rate of 100 columns"


# gaiadask/elementary.json ---------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_tables_of_elementary_functions_are_up_to_date() -> None:
    make_tables = module_of_docs("make_tables")
    assert make_tables.FILE.read_text(encoding="utf-8") == make_tables.text(), (
        "gaiadask/elementary.json: `make docs` writes it anew"
    )


# The command line ----------------------------------------------------------------------------------------------------
def test_the_command_line_is_as_it_was_reviewed() -> None:
    assert cli_text() == CLI_TEXT.read_text(encoding="utf-8"), (
        "the command line has changed. If that is meant: `python tests/cli_text.py > tests/data/cli.txt`, and say it in CHANGELOG.md"
    )


# make, CI, the licence, how to cite -----------------------------------------------------------------------------------
def test_make_help_names_every_target() -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True).stdout
    assert re.findall(r"^  make (\w+) +\S", shown, re.MULTILINE) == phony.split()


def test_make_targets_that_pages_name_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / ".ci" / "run", *(ROOT / ".github").rglob("*.md")]
    named = {
        name
        for page in pages
        for names in re.findall(r"(?:^ *|`)make((?: [a-z]+)+)", page.read_text("utf-8"), re.M)
        for name in names.split()
    }
    assert {"demo", "lint", "types", "test"} <= named
    assert not {name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)}


def test_the_licence_and_the_version_are_said_alike() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["license"], citation["version"]) == (project["license"], project["version"]) == ("MIT", gaiadask.__version__)
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")
    assert re.search(rf"^## {re.escape(project['version'])}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_package_has_the_files_that_it_reads() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"][
        "gaiadask"
    ]
    package = ROOT / "gaiadask"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    read = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".py"}
    left_out = sorted(str(path.relative_to(package)) for path in read - packed)
    assert not left_out, f"pyproject.toml, package-data: {', '.join(left_out)} would be missing from an installed gaiadask"
