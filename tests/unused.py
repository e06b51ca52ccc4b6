"""Code that nothing in gaiadask or flows uses, as vulture finds it; exit code 1 where there is some.

    python tests/unused.py     # `make lint` runs it

Tests do not count as a use. What is used in ways that vulture cannot see is allowed by name in pyproject.toml, [tool.vulture].
Fields of records are allowed all together: a record is read from a file and written to it whole. So are names in tables of what is
imported when it is needed.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from measures import PACKAGES, ROOT, module_files
from vulture import Vulture

RECORDS = {"Record", "Section", "BaseModel"}


def unused() -> list[str]:
    """One line each: where it is and what."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["vulture"]
    finder = Vulture(ignore_names=[*options["ignore_names"], *named_in_tables()], ignore_decorators=options["ignore_decorators"])
    finder.scavenge([str(ROOT / package) for package in PACKAGES])
    fields = set(record_fields())
    return [
        f"{item.filename.relative_to(ROOT)}:{item.first_lineno}: {item.message}"
        for item in finder.get_unused_code(min_confidence=options["min_confidence"])
        if (item.filename, item.first_lineno) not in fields
    ]


def named_in_tables() -> set[str]:
    """Names that tables give as "module:name", to be imported when they are needed."""
    paths = module_files(ROOT / package for package in PACKAGES).values()
    return {name for p in paths for name in re.findall(r'"[\w.]+:(\w+)"', p.read_text(encoding="utf-8"))}


def record_fields() -> Iterator[tuple[Path, int]]:
    """File and line of each field of a class that is a record, by its base classes' names."""
    paths = module_files(ROOT / package for package in PACKAGES).values()
    classes = [(p, c) for p in paths for c in ast.walk(ast.parse(p.read_text(encoding="utf-8"))) if isinstance(c, ast.ClassDef)]
    records: set[str] = set()
    for _ in classes:  # until no class is added: a record of a record of a record is one too
        derived = {c.name for _, c in classes if (RECORDS | records) & {ast.unparse(base) for base in c.bases}}
        if derived == records:
            break
        records = derived
    for path, record in classes:
        if record.name in records:
            yield from ((path, field.lineno) for field in record.body if isinstance(field, ast.AnnAssign))


def main() -> int:
    """Print what is unused; 1 where something is."""
    found = unused()
    for line in found:
        print(line)
    if found:
        print("Delete it, or allow it in pyproject.toml, [tool.vulture] ignore_names, with the reason.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
