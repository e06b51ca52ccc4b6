"""Measures of the code: how long functions and files are, what their signatures say, whether imports go in circles.

    python tests/measures.py                        # gaiadask, and gaiadask with flows
    python tests/measures.py path/to/package ...    # any other code, to compare with

tests/test_rules.py holds gaiadask to the limits.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGES = ("gaiadask", "flows")
UNTYPED = ("dict[str, Any]", "Mapping[str, Any]", "MutableMapping[str, Any]")


class Function(NamedTuple):
    """One function or method, nested ones too."""

    name: str
    """Of the module, its classes and the function: `gaiadask.run.Run.latent`."""
    lines: int
    """With its decorators and docstring."""
    arguments: tuple[ast.arg, ...]
    """Without self and cls."""
    returns: ast.expr | None

    @property
    def annotations(self) -> Iterator[str]:
        """Of its arguments and its result, as written in canonical form."""
        for annotation in (*(a.annotation for a in self.arguments), self.returns):
            if annotation is not None:
                yield ast.unparse(annotation)

    @property
    def is_untyped(self) -> bool:
        """Whether a mapping of anything stands in its signature."""
        return any(name in annotation for annotation in self.annotations for name in UNTYPED)


def module_files(folders: Iterable[Path]) -> dict[str, Path]:
    """The Python files below these packages, by module name; a package by the name of its folder."""
    names = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
            names[".".join(parts).removesuffix(".__init__")] = path
    return names


def functions(module: str, path: Path) -> list[Function]:
    """All functions of a file."""
    return list(_functions_in(ast.parse(path.read_text(encoding="utf-8")), module))


def _functions_in(node: ast.AST, name: str, in_class: bool = False) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = f"{name}.{child.name}"
            yield Function(inner, _lines(child), _arguments(child, in_class), child.returns)
            yield from _functions_in(child, inner)
        elif isinstance(child, ast.ClassDef):
            yield from _functions_in(child, f"{name}.{child.name}", in_class=True)
        else:
            yield from _functions_in(child, name, in_class)


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = min([function.lineno, *(d.lineno for d in function.decorator_list)])
    return (function.end_lineno or function.lineno) - first + 1


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef, in_class: bool) -> tuple[ast.arg, ...]:
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    static = any(ast.unparse(d) == "staticmethod" for d in function.decorator_list)
    if in_class and not static:
        positional = positional[1:]
    return (*positional, *given.kwonlyargs, *(a for a in (given.vararg, given.kwarg) if a is not None))


def imports(files: Mapping[str, Path], *, inside_functions: bool = True) -> dict[str, set[str]]:
    """Which modules each module imports, of those in `files`. What only a type checker imports does not count."""
    return {module: set(_imports_of(module, path, files, inside_functions)) for module, path in files.items()}


def _imports_of(module: str, path: Path, files: Mapping[str, Path], inside_functions: bool) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _import_nodes(ast.parse(path.read_text(encoding="utf-8")), inside_functions):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
            continue
        above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
        source = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            submodule = f"{source}.{alias.name}"
            if submodule in files:
                yield submodule
            elif source in files and source != module:
                yield source


def _import_nodes(node: ast.AST, inside_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        elif isinstance(child, ast.FunctionDef) and child.name == "__getattr__":
            continue  # a package's names that load when a user asks for them: nothing in the package does
        elif inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _import_nodes(child, inside_functions)


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules of which each imports, over others, each other one (Tarjan 1972: strongly connected components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for imported in sorted(graph[module]):
            if imported not in order:
                visit(imported)
                lowest[module] = min(lowest[module], lowest[imported])
            elif imported in stack:
                lowest[module] = min(lowest[module], order[imported])
        if lowest[module] == order[module]:
            place = stack.index(module)
            group, stack[place:] = sorted(stack[place:]), []
            if len(group) > 1:
                groups.append(group)

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return sorted(groups)


def measures(folders: Iterable[Path]) -> dict[str, str]:
    """What is measured of these packages, as rows of a table."""
    files = module_files(folders)
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in files.items()}
    every = [function for module, path in files.items() for function in functions(module, path)]
    lengths = sorted(function.lines for function in every)
    arguments = [argument for function in every for argument in function.arguments]
    annotated = sum(argument.annotation is not None for argument in arguments)
    wide = [function for function in every if len(function.arguments) > 8]
    worst = f" (worst {max(len(f.arguments) for f in wide)})" if wide else ""
    longest, largest = max(every, key=lambda f: f.lines), max(lines, key=lambda m: lines[m])
    return {
        "lines, files": f"{sum(lines.values())}, {len(files)}",
        "median, p95, longest function": f"{statistics.median(lengths):.0f}, {lengths[int(0.95 * (len(lengths) - 1))]}, "
        f"{longest.lines} ({longest.name})",
        "more than 8 arguments": f"{len(wide)}{worst}",
        "annotated arguments": f"{annotated / max(len(arguments), 1):.0%}",
        "functions that return dict[str, Any]": str(
            sum(function.returns is not None and any(u in ast.unparse(function.returns) for u in UNTYPED) for function in every)
        ),
        "functions with dict[str, Any] in their signature": str(sum(function.is_untyped for function in every)),
        "import circles when modules load": str(len(circles(imports(files, inside_functions=False)))),
        "import circles, imports in functions too": str(len(circles(imports(files)))),
        "largest file": f"{lines[largest]} ({largest})",
    }


def main(arguments: list[str]) -> None:
    """Print the measures of each folder named, or of gaiadask without and with flows."""
    choices = [[Path(a)] for a in arguments] or [[ROOT / "gaiadask"], [ROOT / name for name in PACKAGES]]
    columns = [("", *measures(choices[0])), *((" + ".join(p.name for p in c), *measures(c).values()) for c in choices)]
    for number, row in enumerate(zip(*columns, strict=True)):
        print("| " + " | ".join(row) + " |")
        if number == 0:
            print("| " + " | ".join("---" for _ in row) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
