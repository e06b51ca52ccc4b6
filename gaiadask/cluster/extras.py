"""Modules that need an optional extra of gaiadask, whose absence is told by the extra's name."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from gaiadask.errors import ConfigurationError

Arguments = dict[str, object]
"""Keyword arguments of a class of Dask clusters."""
EXTRAS = {"dask_jobqueue": "slurm", "dask_kubernetes": "kubernetes"}
"""Which extra brings a package."""


@contextmanager
def _interrupts_left() -> Iterator[None]:
    """Ctrl-C means after the block what it did before: dask_jobqueue, when it is imported, makes the process exit as if all were well."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def imported(name: str, package: str) -> Any:
    """The module of a name, which needs a package of `EXTRAS`. Raises ConfigurationError, naming the extra, where the package is missing."""
    try:
        with _interrupts_left():
            return import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        extra = EXTRAS[package]
        raise ConfigurationError(
            f"[cluster] kind {extra!r} needs {package}, which is not installed: pip install 'gaiadask[{extra}]'"
        ) from error
