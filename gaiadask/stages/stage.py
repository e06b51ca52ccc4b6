"""What a stage is: its name, what it needs, and the work that its module does.

A stage is one module of `gaiadask.stages` that has a `WORK`, and one line of `stages.table`. The commands of every run's
stages and the hints in errors are made from that table; a stage on request has its command in `gaiadask.cli`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gaiadask.records import JsonObject, Record, StageResult

if TYPE_CHECKING:
    from gaiadask.stages.context import Context
    from gaiadask.validate import Finding


def _nothing(_: Context) -> None:
    return None


def _no_files(_: Context) -> Sequence[str]:
    return ()


def _always(_: Context) -> bool:
    return True


def _no_suffix(_: Context) -> str:
    return ""


@dataclass(frozen=True)
class StageWork:
    """The work of a stage.

    Attributes:
        inputs: everything that the result depends on, JSON-able: its hash is the stage's key. Raises MissingStageError where an
            earlier stage is missing.
        make: does the work and returns the result; takes the key.
        result: type of the result.
        drop: removes what was made, with `files` by default.
        prepare: does, before a result is dropped or the stage's work begins, what may refuse the request; changes nothing.
        present: whether what a finished stage made is still there, whole and of the same origin as what it is used with; where it is
            not, it is made again. Raises KeyMismatchError where that would take the place of somebody else's.
        whole: whether what is made beside for other readers, and no later stage needs, is there too; where it is not, the stage is made again.
        files: names of the files and folders that it makes in the run's store, in the order in which they are removed.
        place: where the result lies, if that is a choice of the request (a folder): each place has its own entry in the manifest.
        options: type of the request that the stage takes; None where it takes none.
        problems: what is wrong with the files that it made, for `gaiadask validate`; takes the place where they lie ("": the run's) and
            whether to look at footers alone. None: `validate` does not look at them.
    """

    inputs: Callable[[Context], JsonObject]
    make: Callable[[Context, str], StageResult]
    result: type[StageResult]
    drop: Callable[[Context], None] | None = None
    prepare: Callable[[Context], None] = _nothing
    present: Callable[[Context], bool] = _always
    whole: Callable[[Context], bool] = _always
    files: Callable[[Context], Sequence[str]] = _no_files
    place: Callable[[Context], str] = _no_suffix
    options: type[Record] | None = None
    problems: Callable[[Context, str, bool], list[Finding]] | None = None

    def remove(self, context: Context) -> None:
        """Remove what was made."""
        if self.drop:
            self.drop(context)
        else:
            context.remove(*self.files(context))


@dataclass(frozen=True)
class Stage:
    """One stage, light enough to be listed without loading what its work needs.

    Attributes:
        name: of the stage, its command and its entry in the manifest.
        help: what it does, in one line.
        needs: names of the stages whose results it is made from.
        on_request: whether it runs only when it is asked for, not as part of a run.
        deployed: whether it is a Prefect deployment of its own.
        outside: whether computing its inputs needs the archive, which may be unreachable later: they are then compared only
            when the stage itself is run.
        from_catalogue: whether it is made from the catalogue, directly or not; what is not can be made when the catalogue is gone.
        on_workers: whether workers do its work.
        module: the module with its `WORK`; by default the one of its name in `gaiadask.stages`.
    """

    name: str
    help: str
    needs: tuple[str, ...] = ()
    on_request: bool = False
    deployed: bool = False
    outside: bool = False
    from_catalogue: bool = True
    on_workers: bool = True
    module: str = ""

    @property
    def work(self) -> StageWork:
        """The stage's work, its module loaded."""
        work: Any = importlib.import_module(self.module or f"gaiadask.stages.{self.name}").WORK
        assert isinstance(work, StageWork), f"{self.name}: WORK is no StageWork"
        return work

    def entry(self, context: Context) -> str:
        """Name of the stage's entry in the manifest."""
        return f"{self.name} {place}" if (place := self.work.place(context)) else self.name
