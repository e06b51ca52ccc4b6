"""gaiadask: the Gaia catalogue as something small, complete and usable.

`open_run(uri)` gives a finished run: its latents and rebuilt stars as lazy frames. `decompress(uri)` gives the stars of a compressed
catalogue. `batches(catalogue, columns, batch_rows)` gives the
rows of any HATS catalogue as shuffled torch batches. The command line makes runs.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gaiadask.loader.batches import Batches as batches
    from gaiadask.run import Run, decompress, open_run

__version__ = version("gaiadask")
__all__ = ["Run", "__version__", "batches", "decompress", "open_run"]


def __dir__() -> list[str]:
    # For completion and `help(gaiadask)`: what is loaded when it is asked for is there, too.
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: torch and dask take seconds that `gaiadask --help` need not wait.
    if name in ("Run", "decompress", "open_run"):
        from gaiadask import run

        return getattr(run, name)
    if name == "batches":
        from gaiadask.loader.batches import Batches

        return Batches
    raise AttributeError(f"module 'gaiadask' has no attribute {name!r}")
