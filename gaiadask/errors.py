"""Everything that a user, an archive or a store can cause is a `GaiadaskError`; anything else is a bug of ours.

A message names the thing, what was expected, what was found and what to do, and fits on one screen.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType


class GaiadaskError(Exception):
    """Base of the family: the CLI prints its message without a traceback and exits with 1.

    failures: where it sums up many pieces of work, what each one that failed raised, by name.
    """

    failures: Mapping[str, GaiadaskError] = MappingProxyType({})


class ConfigurationError(GaiadaskError):
    """An option that is unknown, ill-typed or contradicts another."""


class ArchiveError(GaiadaskError):
    """The archive cannot be reached, refused a query, or answered with something that is not the whole answer."""


class ChunkTooLargeError(ArchiveError):
    """More than the archive gives at once (rows, a job's time) or than a worker holds: smaller pieces may come."""


class DataError(GaiadaskError):
    """Rows or columns that are not what they must be: missing, not finite, twice, in the wrong tile."""


class StoreError(GaiadaskError):
    """A store that cannot be read or written, or holds a damaged file."""


class MissingFileError(StoreError):
    """A file that is not in the store."""


class DamagedFileError(StoreError):
    """A file that is there, and is not what was written: cut, or overwritten."""


class StoreHeldError(StoreError):
    """Another writer holds the store or the run."""


class KeyMismatchError(GaiadaskError):
    """The store holds a result made from other inputs than the ones asked for now; nothing was overwritten."""


class MissingStageError(GaiadaskError):
    """A stage's input has not been made yet; the message names the command that makes it."""


class OutOfMemoryError(GaiadaskError):
    """The device has no memory for the work, however small its pieces are made."""


class TrainingError(GaiadaskError):
    """Training could not start, or a rank ended without a model."""


class LostRankError(TrainingError):
    """A rank ended without reporting an error: killed, or out of memory. A new one with the same assignment resumes from its checkpoint."""


class LostPeersError(LostRankError):
    """A rank ended because another one was gone: that one's end has the reason."""


class WorkersDiedError(GaiadaskError):
    """Every worker that tried a piece of work died."""


class ClusterError(GaiadaskError):
    """The cluster is gone: its scheduler, the connection to it, or for long all its workers. No work can be done there any more."""


class WrongClusterError(ClusterError):
    """A cluster that cannot start as it is described, or has another gaiadask: the next try would meet the same."""


_LISTED = 40
"""So many names are listed beside those that were probably meant: more would fill the screen."""


def known_names(unknown: Iterable[str], known: Iterable[str]) -> str:
    """The end of an error about names that are unknown: the known ones that are most like them, and all that there are.

    Where there are very many, and each unknown name is like one of them, only those.
    """
    asked, names = list(unknown), list(known)
    nearest = [match for name in asked for match in difflib.get_close_matches(name, names, 1)]
    if not nearest:
        return f"there are {', '.join(names)}"
    meant = f"did you mean {', '.join(dict.fromkeys(nearest))}?"
    return meant if len(nearest) == len(asked) and len(names) > _LISTED else f"{meant} There are {', '.join(names)}"


def counted(number: int, noun: str) -> str:
    """A number and what is counted: `1 file`, `1,200 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def summed_up(task: str, count: int, failures: Mapping[str, GaiadaskError]) -> GaiadaskError:
    """What failed of `count` pieces of work, as one error; of the failures' own type where they have one."""
    if len(failures) == 1 and count == 1:
        return next(iter(failures.values()))
    shown = [f"  {name}: {error}" for name, error in list(failures.items())[:10]]
    more = [f"  … and {len(failures) - 10} more"] if len(failures) > 10 else []
    text = "\n".join([f"{task}: {len(failures)} of {count} failed; finished work is not lost:", *shown, *more])
    kinds = {type(error) for error in failures.values()}
    error = (kinds.pop() if len(kinds) == 1 else GaiadaskError)(text)
    error.failures = dict(failures)
    return error
