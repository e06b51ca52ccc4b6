"""Rules on the code itself: sizes, signatures, examples that run. (Who may import what: pyproject.toml, [tool.importlinter].)"""

from __future__ import annotations

import doctest
import importlib
import tarfile
from functools import cache
from pathlib import Path

import pytest
from measures import PACKAGES, ROOT, Function, circles, functions, imports, module_files
from numba.core.dispatcher import Dispatcher

ARGUMENTS = 8
LINES = 450
FILES = module_files(ROOT / package for package in PACKAGES)

# A mapping of anything may stand in these signatures, beside to_json, from_json and names that end so. Of each: why.
AT_THE_EDGE = {
    "gaiadask.config.toml.parse_config",  # options as TOML and Prefect give them, not yet checked
    "gaiadask.config.toml.only_given",  # the same, of a configuration: to be parsed again with others put in
    "gaiadask.config.toml._own_defaults",  # an option's default may be of any type
    "gaiadask.config.toml._of_the_preset",  # the same
    "flows.gaia.as_chosen",  # a flow run's parameters, before they are a configuration
    "flows.gaia._given",  # a section among them
    "gaiadask.config.presets.model_defaults",  # the same, before the configuration is validated
}


@cache
def every_function() -> tuple[Function, ...]:
    return tuple(function for module, path in FILES.items() for function in functions(module, path))


@pytest.mark.slow
def test_no_function_has_too_many_arguments() -> None:
    # A command of the command line has an argument for each of its options.
    wide = {f.name for f in every_function() if len(f.arguments) > ARGUMENTS and not f.name.startswith("gaiadask.cli.")}
    assert not wide, f"at most {ARGUMENTS} arguments: make a record of those that belong together"


def test_no_file_is_too_long() -> None:
    long = {module for module, path in FILES.items() if len(path.read_text(encoding="utf-8").splitlines()) > LINES}
    assert not long, f"at most {LINES} lines: move what has a subject of its own into a module of its own"


@pytest.mark.slow
def test_signatures_name_their_records() -> None:
    untyped = {f.name for f in every_function() if f.is_untyped and not f.name.endswith(("to_json", "from_json"))}
    assert untyped >= AT_THE_EDGE, f"no longer so: take {sorted(AT_THE_EDGE - untyped)} out of AT_THE_EDGE"
    assert untyped == AT_THE_EDGE, f"no dict[str, Any] but where JSON is parsed or written: {sorted(untyped - AT_THE_EDGE)}"


def test_every_argument_is_annotated() -> None:
    assert not [f"{f.name}({a.arg})" for f in every_function() for a in f.arguments if a.annotation is None]


@pytest.mark.slow
def test_modules_load_without_a_circle() -> None:
    assert not circles(imports(FILES, inside_functions=False))


def test_compiled_functions_call_none_of_another_module() -> None:
    """The cache of a compiled function does not see changes of another file."""
    compiled = {
        (name, attribute): function
        for name in FILES
        for attribute, function in vars(importlib.import_module(name)).items()
        if isinstance(function, Dispatcher)
    }
    elsewhere = {
        f"{name}.{attribute} uses {used}"
        for (name, attribute), function in compiled.items()
        for used in function.py_func.__code__.co_names
        if isinstance(other := function.py_func.__globals__.get(used), Dispatcher)
        and other.py_func.__module__ != function.py_func.__module__
    }
    assert not elsewhere


@pytest.fixture(scope="module")
def example_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store with a finished run "dr2"."""
    folder = tmp_path_factory.mktemp("examples")
    with tarfile.open(Path(__file__).parent / "data" / "store-0.1.0.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    (folder / "store" / "runs" / "r").rename(folder / "store" / "runs" / "dr2")
    return folder / "store"


# Examples ------------------------------------------------------------------------------------------------------------
WITH_EXAMPLES = [module for module, path in FILES.items() if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_in_docstrings_run(module: str, example_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(example_store.parent)  # examples open store/runs/dr2
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testmod(importlib.import_module(module), optionflags=options)
    assert tried, f"{module} has examples that doctest does not find: they stand in no docstring"
    assert not failed, "the output above says which example gives something else"


def test_public_names_have_examples() -> None:
    public = ["run", "encode", "decode", "sample", "config.toml", "inputs.transform", "model.star_model", "archive.base"]
    assert not {f"gaiadask.{name}" for name in [*public, "quality.records"]} - {*WITH_EXAMPLES}


# The measures themselves ---------------------------------------------------------------------------------------------
def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "d"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_arguments_and_signatures_are_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "m.py"
    path.write_text(
        "class A:\n"
        "    def f(self, a: int, *b: str, c: list[dict[str, Any]], **d: Any) -> None: ...\n"
        "    @staticmethod\n    def g(a: int): ...\n"
        "def h(a: 'int') -> Mapping[str, Any]:\n    def inner(x): ...\n"
    )
    found = {f.name: f for f in functions("m", path)}
    assert {name: [a.arg for a in f.arguments] for name, f in found.items()} == {
        "m.A.f": ["a", "c", "b", "d"], "m.A.g": ["a"], "m.h": ["a"], "m.h.inner": ["x"],
    }  # fmt: skip
    assert [name for name, f in found.items() if f.is_untyped] == ["m.A.f", "m.h"]
    assert (found["m.A.g"].lines, found["m.h"].lines) == (2, 2)
