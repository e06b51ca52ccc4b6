"""The report in headless Chromium: whole at every width and on paper, readable in the dark, by keyboard and by axe's rules."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from browser import Tab, chromium, is_lacking
from PIL import Image

pytestmark = pytest.mark.slow
DESKTOP, PHONE, A4 = 1400, 420, 703
"""Widths in CSS pixels; of A4 without its margins."""


@pytest.fixture(scope="module")
def file(report_page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report as a file."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(report_page, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    """A tab of Chromium; skips where it is not installed."""
    if is_lacking():
        pytest.skip("needs Chromium to look at the report: not installed (.ci/run installs chromium)")
    with chromium() as tab:
        yield tab


TOO_WIDE = """(selector) => [...document.querySelectorAll(selector)].filter((part) => part.scrollWidth > part.clientWidth + 1)
    .map((part) => part.getAttribute("aria-label") || part.textContent.slice(0, 40))"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_whole_on_a_desktop_with_the_head_on_one_screen(tab: Tab, file: Path, dark: bool) -> None:
    tab.open(file, DESKTOP, dark=dark)
    assert tab.ask("document.documentElement.scrollWidth <= innerWidth")
    assert tab.ask(f"({TOO_WIDE})('.scroll, .pan, nav .sheet, .tile dd, header p')") == []
    assert tab.ask("document.querySelector('header').getBoundingClientRect().bottom") <= 900
    assert tab.ask("document.querySelectorAll('.scroll').length") >= 8, "all tables are there"
    assert tab.errors == []
    assert {url.split(":")[0] for url in tab.requests} == {"file", "data"}, "nothing is fetched"


def test_whole_on_a_phone(tab: Tab, file: Path) -> None:
    """What is wider than the screen scrolls in its own place, by keyboard too; names of rows stay in sight."""
    tab.open(file, PHONE)
    assert tab.ask("document.documentElement.scrollWidth <= innerWidth")
    assert tab.ask(f"({TOO_WIDE})('.tile dd, header p, section > p, figcaption')") == []
    wide = tab.ask(f"({TOO_WIDE})('.scroll')")
    assert "Errors of each column" in wide
    assert (
        tab.ask(
            """[...document.querySelectorAll('.scroll')].filter((part) => part.checkVisibility() && part.scrollWidth > part.clientWidth)
        .map((part) => part.querySelector('tbody th').offsetWidth / part.clientWidth).filter((share) => share > 0.6)"""
        )
        == []
    ), "names that stay in sight leave room for what they name"
    assert tab.ask(
        """[...document.querySelectorAll('.scroll, .pan')].filter((part) => part.checkVisibility() && part.scrollWidth > part.clientWidth)
        .every((part) => { part.scrollLeft = 1e6; part.focus();
            return document.activeElement === part && part.scrollLeft + part.clientWidth >= part.scrollWidth - 1; })"""
    )
    assert tab.ask(
        """(() => { const part = document.querySelector('.scroll'), row = part.querySelector('tbody th');
        return Math.abs(row.getBoundingClientRect().left - part.getBoundingClientRect().left) < 3 })()"""
    )


def test_whole_on_paper(tab: Tab, file: Path) -> None:
    """No table is cut off, what is folded on the screen is printed, and paper is white whatever the screen is."""
    tab.open(file, A4, dark=True, media="print")
    assert tab.ask(f"({TOO_WIDE})('.scroll, .pan, .tile dd, pre')") == []
    folded = tab.ask("[...document.querySelectorAll('details > :not(summary)')].map((part) => part.getBoundingClientRect().height)")
    assert len(folded) >= 4 and min(folded) > 20
    assert tab.ask("getComputedStyle(document.body).color") == "rgb(28, 35, 51)"
    assert tab.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.pdf().count(b"/Type /Page\n") >= 3


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pictures_are_readable_in_both_themes(tab: Tab, file: Path, dark: bool) -> None:
    tab.open(file, DESKTOP, dark=dark)
    tab.ask("document.querySelector('.multiples figure').scrollIntoView({behavior: 'instant', block: 'center'})")
    box = tab.ask(
        "(() => { const box = document.querySelector('.multiples figure').getBoundingClientRect(); return [box.x, box.y, box.right, box.bottom] })()"
    )
    pixels = np.asarray(Image.open(io.BytesIO(tab.picture())).convert("RGB").crop(box), np.float64)
    linear = np.where(pixels <= 10, pixels / 3294.6, ((pixels / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    paper = luminance[3, 20]  # within the edge of the card
    contrast = (np.maximum(luminance, paper) + 0.05) / (np.minimum(luminance, paper) + 0.05)
    assert (paper < 0.05) == dark
    assert (contrast > 7).sum() > 30, "letters"
    assert (contrast > 1.8).mean() > 0.1, "the real stars' area"


def test_tables_sort_by_keyboard(tab: Tab, file: Path) -> None:
    tab.open(file, DESKTOP)
    table = "document.querySelector('[aria-label=\"Errors of each column\"] table')"
    column = f"[...{table}.tBodies[0].rows].map((row) => row.cells[6].textContent)"
    foot = tab.ask(f"{table}.tFoot.textContent")
    names = f"[...{table}.tBodies[0].rows].map((row) => row.cells[0].textContent)"
    unsorted = tab.ask(names)
    tab.ask(f"{table}.tHead.rows[1].cells[4].querySelector('button').focus()")
    tab.press("Tab")
    assert tab.ask("document.activeElement.closest('th').textContent") == "median", "error over σ"
    for key, direction in (("Enter", "ascending"), (" ", "descending")):
        tab.press(key)
        assert tab.ask(f"[...{table}.querySelectorAll('[aria-sort]')].map((head) => head.getAttribute('aria-sort'))") == [direction]
        shown = tab.ask(column)
        numbers = [float(text.replace("\u202f", "")) for text in shown if text != "–"]
        assert numbers == sorted(numbers, reverse=direction == "descending") and len(set(numbers)) > 4
        assert shown[len(numbers) :] == ["–"] * (len(shown) - len(numbers)) != [], "what is missing comes last"
    tab.ask(f"{table}.tHead.rows[0].cells[0].querySelector('button').click()")
    assert tab.ask(names) == sorted(unsorted) != unsorted
    assert tab.ask(f"{table}.tFoot.textContent") == foot


def test_the_hr_diagram_names_its_stars_and_gives_them_away(tab: Tab, file: Path, tmp_path: Path) -> None:
    tab.open(file, DESKTOP)
    stars = json.loads(tab.ask("document.getElementById('hr-stars').textContent"))
    assert len(stars["panels"]) == 3
    box = tab.ask(
        """(() => { const part = document.getElementById('hr-diagram'); part.scrollIntoView({behavior: 'instant', block: 'center'});
        const box = part.querySelector('img').getBoundingClientRect(); return [box.x, box.y, box.width, box.height] })()"""
    )
    label = "document.querySelector('#hr-diagram output').innerText"
    tab.ask("document.getElementById('hr-diagram').focus()")
    for _ in range(5):
        tab.press("ArrowRight")
    stepped = tab.ask(label)
    assert stepped.startswith("source_id ") and "\nrebuilt: BP − RP " in stepped
    ring = tab.ask("[...document.querySelectorAll('.ring')].map((ring) => [ring.offsetLeft, ring.offsetTop, ring.hidden])")[0]
    tab.press("Escape")
    assert tab.ask("document.querySelector('#hr-diagram output').hidden")
    # The same star by the mouse, which is in the middle of the ring.
    tab.point(box[0] + ring[0] + 6.5, box[1] + ring[1] + 6.5)
    assert tab.ask(label).splitlines()[0] == stepped.splitlines()[0]

    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    tab.ask("document.querySelector('#hr-download button').click()")
    saved, deadline = tmp_path / "trial-hr.csv", time.monotonic() + 20
    while not saved.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
        tab.ask("1")
    rows = list(csv.DictReader(saved.open(encoding="utf-8")))
    assert len(rows) > 300
    found = next(row for row in rows if row["source_id"] == stepped.splitlines()[0].split()[1])
    assert f"real: BP − RP {found['bp_rp_real']}, M_G {found['m_g_real']}".replace("-", "−") in stepped
    assert set(rows[0]) == {"source_id", *(f"{name}_{kind}" for kind in stars["series"] for name in ("bp_rp", "m_g"))}
    assert tab.errors == []


@pytest.mark.parametrize(("width", "dark"), [(DESKTOP, False), (PHONE, True)], ids=["light desktop", "dark phone"])
def test_axe_finds_no_violation(tab: Tab, file: Path, width: int, dark: bool) -> None:
    tab.open(file, width, dark=dark)
    tab.ask("document.querySelectorAll('details').forEach((part) => { part.open = true })")
    tab.ask("new Promise(requestAnimationFrame).then(() => 1)")
    tab.ask(files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    # The other rules do not depend on width and theme.
    rules = "" if width == DESKTOP else ", runOnly: ['color-contrast', 'scrollable-region-focusable']"
    found = tab.ask(
        f"axe.run(document, {{resultTypes: ['violations']{rules}}}).then(({{ violations }}) => "
        "violations.map((each) => [each.id, each.nodes.slice(0, 3).map((node) => node.html.slice(0, 200))]))"
    )
    assert found == []


def test_without_scripts_everything_is_there_but_sorting_and_names(tab: Tab, file: Path) -> None:
    tab.open(file, DESKTOP, scripts=False)
    tab.call("Emulation.setScriptExecutionDisabled", value=False)
    assert tab.ask("document.querySelectorAll('thead button, .ring').length") == 0
    assert tab.ask("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert tab.ask("getComputedStyle(document.querySelector('nav')).position") == "sticky"
