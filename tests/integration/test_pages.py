"""The commands and the code on the pages and in the notebooks, run as they stand there, on a small finished run."""

from __future__ import annotations

import shlex
import shutil
import tomllib
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import pytest
from distributed import Client
from pages import NOTEBOOKS, PAGES, blocks
from typer.testing import CliRunner

from gaiadask.cli import app
from gaiadask.config.toml import dump_toml, parse_config

from .place import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

NOT_RUN = ("pip install ",)
"""The Makefile has done it before any test."""
WITH_CODE = [page for page in PAGES if {"sh", "python"} & {block.language for block in blocks(page)}]


@pytest.fixture
def beside_the_store(finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder is one with a store: pages and notebooks open store/runs/dr2."""
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    shutil.copytree(finished.config.store, tmp_path / "store")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_cells_of_a_notebook(notebook: Path, beside_the_store: None) -> None:
    names = {"__name__": "__main__"}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{notebook.name}, {cell.id}", "exec"), names)
    plt.close("all")


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_commands_and_code_of_a_page(page: Path, finished: Place, client: Client, beside_the_store: None, tmp_path: Path) -> None:
    cluster = finished.config.cluster.model_copy(update={"address": client.scheduler.address})
    config = dump_toml(finished.config.model_copy(update={"store": str(tmp_path / "store"), "cluster": cluster}), comments=False)
    file = Path("gaia.toml")
    file.write_text(config)
    for block in blocks(page):
        if block.language == "python":
            exec(compile(block.text, f"{page.name}, python", "exec"), {"__name__": "__main__"})
        for line in block.text.splitlines() if block.language == "sh" else ():
            command, *arguments = shlex.split(line, comments=True)
            if line.startswith(NOT_RUN):
                continue
            assert command == "gaiadask", f"{page.name}: `{line}` is run by nothing"
            if arguments[0] == "init":
                file.unlink()
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, (line, done.output)
            if arguments[0] == "init":
                parse_config(tomllib.loads(file.read_text()))
                file.write_text(config)  # the reader edits it; no archive is asked here
