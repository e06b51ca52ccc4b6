"""Draw docs/hr_diagram.png, the picture of the README, from the run of `make demo`: python docs/make_picture.py [demo/runs/demo]"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import numpy as np

from gaiadask.quality.files import read_rated
from gaiadask.quality.physics import hr_position
from gaiadask.report import ink, pictures
from gaiadask.run import open_run
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths

FILE = Path(__file__).parent / "hr_diagram.png"


def main(run: Path) -> None:
    """Draw the rated stars of a run, real, rebuilt, by PCA."""
    release = open_run(run).config.release
    rated = read_rated(Store(str(run.parents[1])), RunPaths(run.name), release)
    tables = {"mock stars": rated.real, "rebuilt": rated.rebuilt, "PCA": rated.baseline}
    panels = {}
    for title, table in tables.items():
        if table is None:
            raise SystemExit(f"{run} has no {title}: make the run with `make demo`")
        places = hr_position(table, release)
        panels[title] = (*places[:, np.isfinite(places).all(axis=0)],)
    picture = ink.png(pictures.hr_diagram(panels), "", dpi=100)
    FILE.write_bytes(base64.b64decode(picture.uri.partition(",")[2]))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/runs/demo").resolve())
