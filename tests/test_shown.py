"""What notebooks and help show of the package, a run and a model."""

from __future__ import annotations

import pydoc

import pytest

import gaiadask
from gaiadask.errors import DataError
from gaiadask.html import html_table
from gaiadask.run import Run


def test_completion_and_help_have_what_is_loaded_later() -> None:
    assert set(gaiadask.__all__) <= set(dir(gaiadask))
    text = pydoc.render_doc(gaiadask, renderer=pydoc.plaintext)
    assert "open_run(uri" in text
    assert "class Run(" in text


def test_a_run_is_one_screen(run: Run) -> None:
    assert repr(run).endswith("runs/small')")
    shown = run._repr_html_()
    assert all(f">{stage}<" in shown for stage in ("ingest", "statistics", "train", "encode", "prior"))
    assert "train stars" in shown
    assert len(shown) < 5_000


def test_a_model_is_one_screen(run: Run) -> None:
    assert "16 columns" in repr(run.model) and "6 latents" in repr(run.model)
    assert len(repr(run.model)) < 400
    assert ">parallax<" in run.model._repr_html_()
    assert len(run.model._repr_html_()) < 10_000


def test_texts_are_escaped() -> None:
    assert "<b>" not in html_table("<b>", ["<b>"], [["<b>"]])


def test_wrong_positions_are_refused(run: Run) -> None:
    with pytest.raises(DataError, match="positions='modell': did you mean model"):
        run.decode(run.latent(), positions="modell").compute()  # type: ignore[arg-type]
