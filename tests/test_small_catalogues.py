"""Small and degenerate catalogues: the whole way ends well, or by one error that says how many stars or which column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_run import make_run, small_config

from gaiadask.errors import DataError, GaiadaskError
from gaiadask.run import open_run

COLUMNS = ["ra", "dec", "parallax", "phot_g_mean_flux"]
STAGES = ("ingest", "statistics", "train", "encode", "prior", "evaluate", "report")


def stars(n: int, **changed: object) -> pd.DataFrame:
    random = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "source_id": 66000000000000000 + np.arange(n) * 34359738368,
            "ra": random.uniform(0, 360, n),
            "dec": np.degrees(np.arcsin(random.uniform(-1, 1, n))),
            "parallax": random.normal(7.4, 0.2, n),
            "phot_g_mean_flux": 10 ** random.uniform(3, 6, n),
        }
    )
    return frame.assign(**changed)  # type: ignore[arg-type]


CATALOGUES = {
    "one star": (stars(1), "0 train stars: "),
    "ten": (stars(10), None),
    "two hundred": (stars(200), None),
    "one tile": (stars(200, ra=np.linspace(56, 57, 200), dec=np.linspace(24, 25, 200)), None),
    "one position": (stars(200, ra=56.75, dec=24.1), None),
    "the poles": (stars(200, ra=np.arange(200) % 3 * 180.0, dec=np.where(np.arange(200) % 2, 90.0, -90.0)), None),
    "one right ascension": (stars(200, ra=360.0), None),
    "a strip": (stars(200, dec=np.linspace(-0.02, 0.02, 200)), None),
    "a constant column": (stars(200, parallax=5.0), None),
    "a column of nulls": (stars(200, parallax=np.nan), None),
    "columns that do not vary": (stars(200, parallax=5.0, phot_g_mean_flux=1e4), "nothing to encode: .* 1[0-9]{2} train stars"),
}


@pytest.mark.slow
@pytest.mark.parametrize("catalogue", CATALOGUES)
def test_the_whole_way_ends_well_or_by_one_error(catalogue: str, tmp_path: Path) -> None:
    frame, told = CATALOGUES[catalogue]
    frame.to_parquet(tmp_path / "stars.parquet")
    config = small_config(
        tmp_path / "store",
        archive={"kind": "files", "uris": [str(tmp_path / "stars.parquet")]},
        selection={"columns": COLUMNS},
        model={"columns": COLUMNS, "latents": 1, "hidden": (8,)},
        training={"rows_seen": 4_000, "validate_every_rows": 2_000, "batch_rows": 100},
        prior={"rows_seen": 2_000, "stars": 100, "validation_stars": 100, "hidden": (8,), "transforms": 1},
        quality={"rows": 100, "two_sample_rows": 100, "two_sample_seeds": 1},
    )
    if told:
        with pytest.raises(DataError, match=told):
            make_run(config, *STAGES)
        return
    done = []
    try:
        for stage in STAGES:
            make_run(config, stage)
            done.append(stage)
    except GaiadaskError as error:
        # Of ten stars no one is a validation star, or nothing is left to rate.
        assert "star" in str(error), (done, error)
        assert len(frame) < 100, (done, error)
        return
    run = open_run(f"{config.store}/runs/small", device="cpu")
    assert len(run.latent().compute(scheduler="synchronous")) == len(frame)
    assert len(run.sample(5).compute(scheduler="synchronous")) == 5
