"""README and docs: links lead somewhere, configurations are valid, README is short. (integration/test_pages.py runs their code.)"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from measures import ROOT
from pages import NOTEBOOKS, PAGES, blocks

from gaiadask.config.toml import parse_config


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configurations_are_valid(page: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            parse_config({"name": "dr2", "store": "store"} | tomllib.loads(block.text.replace("…", "")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.is_file(), f"{page.name}: {target} is not there"
        titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
        anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not heading or heading in anchors, f"{page.name}: {target}: no such heading"


def test_readme_fits_two_screens() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    assert len(text.encode()) <= 6_000


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebooks_are_whole_and_have_no_outputs(notebook: Path) -> None:
    book = nbformat.read(notebook, as_version=4)
    nbformat.validate(book)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")
    assert notebook.name in (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
