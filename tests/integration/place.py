"""A configuration file, the store that it names, and the command line on them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_run import small_config

from gaiadask.config.sections import Config
from gaiadask.config.toml import dump_toml
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

GAIADASK = [sys.executable, "-m", "gaiadask.cli"]
ARCHIVE = {"kind": "mock", "mock_stars": 20_000, "chunk_rows": 1_000}
STAGES = ["ingest", "statistics", "train", "encode", "prior", "evaluate", "report"]


@dataclass(frozen=True)
class Place:
    """A configuration file and the store it names."""

    config: Config
    path: Path

    @property
    def store(self) -> Store:
        return Store(self.config.store)

    @property
    def run(self) -> RunPaths:
        return RunPaths(self.config.name)

    def command(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*GAIADASK, str(arguments[0]), str(self.path), *map(str, arguments[1:])],
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done


def place(folder: Path, **changes: Any) -> Place:
    config = small_config(folder / "store", **{"archive": ARCHIVE, **changes})
    path = folder / f"{config.name}.toml"
    path.write_text(dump_toml(config, comments=False))
    return Place(config, path)
