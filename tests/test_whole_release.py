"""Stars in all columns of gaia_source: each is encoded as what it is, and comes back as it was."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from whole_release import whole_release

from gaiadask.archive.base import open_archive
from gaiadask.config.sections import ArchiveConfig, SelectionConfig
from gaiadask.inputs.masses import MassMap
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import Transform
from gaiadask.model.files import describe_columns
from gaiadask.release.dr2 import COLUMNS, DR2, MOCK_COLUMNS

ENCODED = tuple(name for name, column in COLUMNS.items() if column.is_encodable)


@pytest.fixture(scope="module")
def stars() -> pa.Table:
    archive = open_archive(ArchiveConfig(kind="mock", mock_stars=6_000), SelectionConfig(columns=MOCK_COLUMNS, not_null=()))
    return whole_release(
        pa.concat_tables(part for chunk in archive.plan().chunks for part in archive.fetch(chunk, lambda facts: None)), 1
    )


def fitted(table: pa.Table) -> Transform:
    return Transform.fit(ENCODED, Statistics.from_table(table, DR2).train, DR2, "condition")


def of_kind(transform: Transform, kind: str) -> set[str]:
    return {column.name for column in describe_columns(transform) if kind in (column.kind, column.role)}


@pytest.mark.slow
def test_every_column_is_of_its_kind(stars: pa.Table) -> None:
    transform = fitted(stars)
    assert stars.column_names == list(COLUMNS)
    assert len(ENCODED) == 89
    assert of_kind(transform, "constant") == {"ref_epoch", "frame_rotator_object_type"}
    assert of_kind(transform, "derived") == {name for name, column in COLUMNS.items() if column.derived_from}
    assert of_kind(transform, "flag") >= {
        "astrometric_primary_flag",
        "duplicated_source",
        "astrometric_params_solved",
        "flame_flags",
    }
    assert of_kind(transform, "levels") == {"rv_template_teff", "rv_template_logg", "rv_template_fe_h"}
    assert of_kind(transform, "point mass") >= {"astrometric_excess_noise", "astrometric_excess_noise_sig"}
    assert {"matched_observations", "phot_proc_mode", "priam_flags", "rv_nb_transits"} <= of_kind(transform, "count")
    assert "astrometric_chi2_al" in of_kind(transform, "continuous")


def came_back(table: pa.Table, name: str, transform: Transform) -> np.ndarray:
    """Whether values of a column come back as they are from what a network is given."""
    values = transform.inverse(transform.forward(table).values, table["ra"], table["dec"])[name]
    known = table[name].is_valid().to_numpy()
    return np.asarray((values == table[name].cast(pa.float64()).to_numpy())[known])


@pytest.mark.slow
def test_whole_numbers_and_shared_values_come_back_exactly(stars: pa.Table) -> None:
    transform = fitted(stars)
    for name in sorted(of_kind(transform, "count") | of_kind(transform, "flag") | of_kind(transform, "levels") | {"phot_g_n_obs"}):
        assert came_back(stars, name, transform).mean() > 0.999, name
    for name in ("astrometric_excess_noise", "astrometric_excess_noise_sig"):
        zero = stars[name].to_numpy() == 0
        assert zero.mean() > 0.2 and came_back(stars, name, transform)[zero].all()


def test_real_columns_are_of_the_same_kinds(real_rows: pa.Table) -> None:
    """Of few rows some counts are sparse."""
    rows = real_rows.filter(real_rows["solution_id"].is_valid())
    transform = fitted(rows)
    assert {"ref_epoch", "frame_rotator_object_type"} <= of_kind(transform, "constant")
    assert {"astrometric_excess_noise", "astrometric_excess_noise_sig"} <= of_kind(transform, "point mass")
    assert {"rv_template_teff", "rv_template_logg", "rv_template_fe_h"} <= of_kind(transform, "levels")
    assert {"astrometric_primary_flag", "duplicated_source"} <= of_kind(transform, "flag")
    for name in transform.free:
        if isinstance(encoding := transform.encodings[name], MassMap):
            shared = np.isin(rows[name].drop_null().cast(pa.float64()).to_numpy(), encoding.masses)
            assert came_back(rows, name, transform)[shared].all(), name
