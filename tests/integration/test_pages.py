"""The commands and the code on the pages, run as they stand there, on a small finished run."""

from __future__ import annotations

import shlex
import shutil
import tomllib
from pathlib import Path

import matplotlib as mpl
import pytest
from distributed import Client
from pages import PAGES, blocks
from typer.testing import CliRunner

from gaiadask.cli import app
from gaiadask.config.toml import dump_toml, parse_config

from .place import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

NOT_RUN = ("pip install ",)
"""The Makefile has done it before any test."""
WITH_CODE = [page for page in PAGES if {"sh", "python"} & {block.language for block in blocks(page)}]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_commands_and_code_of_a_page(
    page: Path, finished: Place, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # pages open store/runs/dr2
    mpl.use("agg")
    shutil.copytree(finished.config.store, tmp_path / "store")
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
