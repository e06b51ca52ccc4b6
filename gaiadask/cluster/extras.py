"""Modules that need an optional extra of gaiadask, whose absence is told by the extra's name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gaiadask.errors import ConfigurationError

Arguments = dict[str, object]
"""Keyword arguments of a class of Dask clusters."""
EXTRAS = {"dask_jobqueue": "slurm", "dask_kubernetes": "kubernetes"}
"""Which extra brings a package."""


def imported(name: str, package: str, extra: str) -> Any:
    """The module of a name, which needs a package. Raises ConfigurationError, naming the extra, where the package is missing."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ConfigurationError(
            f"[cluster] kind {extra!r} needs {package}, which is not installed: pip install 'gaiadask[{extra}]'"
        ) from error
