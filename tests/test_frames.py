"""Frames as people have them, given to encode and decode: the right stars, or one error that names the column."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import astropy.units as u
import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from astropy.table import MaskedColumn, QTable, Table
from small_run import fetched

from gaiadask.config.sections import Config
from gaiadask.errors import DataError
from gaiadask.frames import table_of
from gaiadask.model.card import latent_names
from gaiadask.release.dr2 import DR2, SEED16
from gaiadask.run import Run, open_run

Z = latent_names(6)


@pytest.fixture(scope="module")
def run(small_run: Config) -> Run:
    return open_run(f"{small_run.store}/runs/{small_run.name}", device="cpu")


@pytest.fixture(scope="module")
def stars(small_run: Config) -> pa.Table:
    return fetched(small_run).slice(0, 60).select(["source_id", *SEED16])


@pytest.fixture(scope="module")
def frame(stars: pa.Table) -> pd.DataFrame:
    """Numpy columns, NaN for null, as most people have them."""
    frame = stars.to_pandas()
    assert frame["radial_velocity"].isna().any()
    return frame


@pytest.fixture(scope="module")
def latents(run: Run, stars: pa.Table) -> pd.DataFrame:
    return run.encode(stars).to_pandas()


class Stream:
    """What polars and duckdb hand out: arrow's C stream, and nothing else."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


def masked_table(frame: pd.DataFrame) -> Table:
    """As astroquery gives it: masked columns with units, what lies under a mask a number like others."""
    columns = {}
    for name in frame:
        values = frame[name].to_numpy()
        null = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)
        columns[name] = MaskedColumn(np.where(null, 1, values).astype(values.dtype), mask=null)
    table = Table(columns)
    table["parallax"].unit, table["phot_g_mean_flux"].unit = u.mas, "electron / s"
    return table


def swapped(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({name: frame[name].to_numpy().astype(frame[name].dtype.newbyteorder(">")) for name in frame})


def nullable(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.convert_dtypes()


KINDS: dict[str, Callable[[pd.DataFrame], Any]] = {
    "pandas": lambda frame: frame,
    "pandas, nullable types": nullable,
    "pandas, objects": lambda frame: frame.astype(object),
    "pandas, big-endian": swapped,
    "pandas, ids as unsigned": lambda frame: frame.assign(source_id=frame.source_id.astype("uint64")),
    "upper case": lambda frame: frame.rename(columns=str.upper),
    "more columns, words and numbers": lambda frame: frame.assign(note=[1, "B"] * 30, when=pd.Timestamp(0)),
    "more columns, without text names": lambda frame: frame.assign(extra=1.0).rename(columns={"extra": 7}),
    "arrow table": lambda frame: pa.Table.from_pandas(frame),
    "arrow batch": lambda frame: pa.RecordBatch.from_pandas(frame),
    "arrow stream": lambda frame: Stream(pa.Table.from_pandas(frame)),
    "astropy": lambda frame: Table.from_pandas(frame),
    "astropy, masked": masked_table,
    "astropy, quantities": lambda frame: QTable(masked_table(frame)),
    "numpy, structured": lambda frame: frame.to_records(index=False),
    "dict of arrays": lambda frame: {name: frame[name].to_numpy() for name in frame},
    "dict of lists": lambda frame: {name: frame[name].to_list() for name in frame},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_table_gives_the_same_latents(run: Run, frame: pd.DataFrame, latents: pd.DataFrame, kind: str) -> None:
    given = KINDS[kind](frame)
    found = run.encode(given)
    assert isinstance(found, pd.DataFrame if kind.startswith(("pandas", "upper", "more")) else pa.Table)
    for name in latents:
        assert np.array_equal(np.asarray(found[name]), latents[name].to_numpy()), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("astropy, masked", "astropy, quantities")])
def test_any_kind_of_table_is_decoded(run: Run, frame: pd.DataFrame, latents: pd.DataFrame, kind: str) -> None:
    found, wanted = run.decode(KINDS[kind](latents)), run.decode(latents)
    for name in wanted:
        assert pd.Series(pa.array(found[name])).isna().equals(pd.Series(pa.array(wanted[name])).isna()), name
    assert np.array_equal(np.asarray(found["source_id"]), frame["source_id"].to_numpy())


def test_masks_that_a_merge_made_floats_are_taken(run: Run, latents: pd.DataFrame) -> None:
    wanted = run.decode(latents)
    assert run.decode(latents.assign(null_mask=latents.null_mask.astype(float))).equals(wanted)


def test_dask_frames_of_any_types(run: Run, frame: pd.DataFrame, latents: pd.DataFrame) -> None:
    with dask.config.set(scheduler="synchronous"):
        asked = dd.from_pandas(frame.assign(note=[1, "B"] * 30).rename(columns=str.upper), npartitions=3)
        found = run.encode(asked)
        assert found.npartitions == 3
        assert np.allclose(found.compute()[Z].to_numpy(float), latents[Z].to_numpy(float), atol=1e-5)
        assert list(run.decode(found).columns) == ["source_id", *SEED16]


def test_an_index_with_repeats_is_kept(run: Run, frame: pd.DataFrame) -> None:
    twice = frame.set_index(pd.Index([4, 4] * 30, name="row"))
    found = run.encode(twice)
    assert found.index.equals(twice.index)
    assert run.decode(found).index.equals(twice.index)


@pytest.mark.parametrize("empty", [lambda f: f.iloc[:0], lambda f: Table.from_pandas(f)[:0], lambda f: {n: [] for n in f}])
def test_no_rows_give_none(run: Run, frame: pd.DataFrame, empty: Callable[[pd.DataFrame], Any]) -> None:
    assert len(run.encode(empty(frame))) == 0


# What changes nothing -------------------------------------------------------------------------------------------------
def test_values_decide_what_is_null_not_a_mask_of_before(run: Run, frame: pd.DataFrame, latents: pd.DataFrame) -> None:
    filled = frame.assign(radial_velocity=frame.radial_velocity.fillna(10.0))
    wanted = run.encode(filled)
    merged = filled.assign(null_mask=latents.null_mask, _healpix_29=latents._healpix_29 + 1)
    pd.testing.assert_frame_equal(run.encode(merged), wanted)
    assert not wanted.null_mask.equals(run.encode(frame).null_mask)
    assert wanted._healpix_29.tolist() == latents._healpix_29.tolist()


# What is refused, by name ---------------------------------------------------------------------------------------------
REFUSED: dict[str, tuple[Callable[[pd.DataFrame], Any], str]] = {
    "float ids": (lambda f: f.assign(source_id=4467675112157508096.0), "column source_id holds double"),
    "no ids": (lambda f: f.assign(source_id=None), "60 of 60 rows have no source_id"),
    "ids below 0": (lambda f: f.assign(source_id=-1), "source_id -1 is out of range"),
    "words for numbers": (lambda f: f.assign(parallax="large"), "column parallax holds"),
    "words among numbers": (lambda f: f.assign(parallax=[1.0, "B"] * 30), "column parallax is no column of numbers"),
    "complex numbers": (lambda f: f.assign(parallax=1j), "column parallax"),
    "a list a row": (lambda f: f.assign(parallax=[[1.0, 2.0]] * 60), "column parallax"),
    "infinite": (lambda f: f.assign(parallax=math.inf), "column parallax: NaN or infinite in 60"),
    "no position": (lambda f: f.assign(ra=math.nan), "60 of 60 rows have no ra"),
    "ra beyond 360": (lambda f: f.assign(ra=f.ra + 360.5), "60 rows have a ra outside"),
    "dec beyond 90": (lambda f: f.assign(dec=90.5), "60 rows have a dec outside"),
    "two of a name": (lambda f: pd.concat([f, f[["parallax"]]], axis=1), "more than one column fits parallax"),
    "two in other cases": (lambda f: f.rename(columns={"parallax": "PARALLAX"}).assign(Parallax=1.0), "more than one column fits"),
    "a missing column": (lambda f: f.drop(columns="parallax"), "no column parallax. Columns found"),
    "names of two levels": (lambda f: pd.concat({"a": f}, axis=1), "no column source_id"),
    "another unit": (lambda f: set_unit(Table.from_pandas(f), "parallax", "arcsec"), "column parallax is in 'arcsec'"),
    "unlike lengths": (lambda f: {**f.to_dict("list"), "parallax": [1.0]}, "columns of different lengths"),
    "numbers, not columns": (lambda f: f.iloc[0].to_dict(), r"column source_id has the shape \(\)"),
    "one row": (lambda f: f.iloc[0], r"one row \(a pandas Series\).*frame.iloc\[\[0\]\]"),
    "a list of rows": (lambda f: f.to_dict("records"), "a builtins list: expected a pandas or dask frame, an arrow table"),
    "a plain array": (lambda f: f.to_numpy(), "a numpy ndarray: expected a pandas or dask frame, an arrow table"),
    "nothing": (lambda f: None, "a builtins NoneType: expected"),
    "a file's name": (lambda f: "stars.parquet", "a builtins str: expected"),
}


def set_unit(table: Table, name: str, unit: str) -> Table:
    table[name].unit = unit
    return table


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_is_named(run: Run, frame: pd.DataFrame, case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(DataError, match=f"^cannot encode: .*{message}"):
        run.encode(change(frame))


NO_LATENTS: dict[str, tuple[Callable[[pd.DataFrame], Any], str]] = {
    "NaN": (lambda f: f.assign(z01=[math.nan, *f.z01[1:]]), r"1 of 60 rows have no z01 \(null or NaN\)"),
    "infinite": (lambda f: f.assign(z01=math.inf), "column z01: NaN or infinite"),
    "no mask": (lambda f: f.drop(columns="null_mask"), "no column null_mask"),
    "some masks": (lambda f: f.assign(null_mask=[None, *f.null_mask[1:].astype(float)]), "1 of 60 rows have no null_mask"),
    "half a mask": (lambda f: f.assign(null_mask=0.5), "column null_mask holds double"),
    "masks of a wider model": (lambda f: f.assign(null_mask=1 << 16), "60 of 60 rows have a null_mask with bits that none of"),
    "masks below 0": (lambda f: f.assign(null_mask=-1), "60 of 60 rows have a null_mask with bits"),
    "fewer latents": (lambda f: f.drop(columns="z05"), "no column z05"),
    "more latents": (lambda f: f.assign(z06=0.0), r"the latents z06 beside the model's 6 \(z00 to z05\)"),
    "float ids": (lambda f: f.assign(source_id=4467675112157508096.0), "column source_id holds double"),
    "no position": (lambda f: f.assign(dec=math.nan), "60 of 60 rows have no dec"),
    "off the sphere": (lambda f: f.assign(dec=91.0), "60 rows have a dec outside"),
    "one row": (lambda f: f.iloc[0], "one row"),
}


@pytest.mark.parametrize("case", NO_LATENTS)
def test_latents_that_are_none_of_the_models_are_named(run: Run, latents: pd.DataFrame, case: str) -> None:
    change, message = NO_LATENTS[case]
    with pytest.raises(DataError, match=f"^cannot decode: .*{message}"):
        run.decode(change(latents))


def test_positions_in_single_precision_are_told(frame: pd.DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    schema = DR2.schema(["source_id", "ra"])
    table = table_of(frame.assign(ra=frame.ra.astype("float32")), schema, "cannot encode (once)", "")
    assert pc.max(pc.abs(pc.subtract(table["ra"], pa.array(frame.ra)))).as_py() < 1e-4
    assert "column ra is float where the archive has double" in caplog.text
