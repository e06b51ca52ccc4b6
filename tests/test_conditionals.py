"""Mock stars against the facts of real ones; the facts against real rows, where there are some."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from conditionals import CONDITIONALS, FEWEST, Conditional, Measured, Stars, unique_stars

from gaiadask.archive.base import open_archive
from gaiadask.config.sections import ArchiveConfig, SelectionConfig
from gaiadask.release.dr2 import MOCK_COLUMNS

STARS = 150_000


@pytest.fixture(scope="module")
def made_up() -> pa.Table:
    archive = open_archive(
        ArchiveConfig(kind="mock", mock_stars=STARS, mock_seed=3), SelectionConfig(columns=MOCK_COLUMNS, not_null=())
    )
    return pa.concat_tables(t for chunk in archive.plan().chunks for t in archive.fetch(chunk, lambda _: None))


def _missed(table: pa.Table, conditionals: Sequence[Conditional] = CONDITIONALS) -> list[str]:
    """Facts that the stars of the table do not keep, each with what was found."""
    stars = Stars(table)
    found = [(c, c.of(stars)) for c in conditionals]
    return [_line(c, m) for c, m in found if not c.low <= m.value <= c.high]


def _line(conditional: Conditional, found: Measured) -> str:
    return f"{conditional.name}: {found.value:.4g} of {found.stars} stars, not in {conditional.low} to {conditional.high}"


def test_each_fact_has_its_name_its_stars_and_room_for_its_real_value() -> None:
    assert len({c.name for c in CONDITIONALS}) == len(CONDITIONALS) > 60
    for c in CONDITIONALS:
        assert c.low <= c.real <= c.high, c.name
        assert c.stars >= FEWEST, c.name


@pytest.mark.slow
def test_made_up_stars_keep_the_facts(made_up: pa.Table) -> None:
    assert _missed(made_up) == []


@pytest.mark.slow
def test_columns_that_are_right_by_themselves_do_not(made_up: pa.Table) -> None:
    """The same stars, each column (and its nulls) shuffled by itself: every marginal is kept, the facts are not."""
    rng = np.random.default_rng(1)
    few = made_up.slice(0, 40_000)
    shuffled = pa.table({name: few[name].take(rng.permutation(len(few))) for name in few.column_names})
    assert len(_missed(shuffled)) > 0.6 * len(CONDITIONALS)


def test_real_values_are_what_real_rows_give(real_rows: pa.Table) -> None:
    """The very sample of the table gives its values; any other keeps the facts it has enough stars for."""
    stars = Stars(unique_stars(real_rows))
    for c in CONDITIONALS:
        found = c.of(stars)
        if found.stars == c.stars:
            assert found.value == pytest.approx(c.real, rel=1e-3, abs=1e-9), c.name
        elif found.stars >= FEWEST:
            assert c.low <= found.value <= c.high, _line(c, found)
