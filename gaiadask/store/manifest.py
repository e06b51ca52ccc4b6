"""manifest.json: which stages of a run have run, and from what; one entry a stage, with its key and what the key is a hash of."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from importlib.metadata import version

from pydantic import Field, ValidationError

from gaiadask.errors import MissingStageError, StoreError
from gaiadask.keys import digest
from gaiadask.records import JsonObject, Record, StageResult, problems
from gaiadask.store.files import RecordType, Store
from gaiadask.store.paths import RunPaths

FORMAT = 1
_VERSIONS_OF = ("gaiadask", "dask", "distributed", "torch", "pyarrow", "numpy", "hats", "scikit-learn")


class StageEntry(Record):
    """A finished stage."""

    key: str = Field(description="hash of the inputs")
    inputs: JsonObject = Field(description="everything that the result depends on")
    result: JsonObject = Field(description="what the stage reports of itself")
    seconds: float = Field(description="that it took")
    finished: str = Field(description="when, ISO 8601, UTC")
    summary: str = Field("", description="the result as a person reads it; 0.1.0 had none")

    @property
    def shown(self) -> str:
        """The result as a person reads it, of 0.1.0's entries too."""
        return self.summary or ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.result.items())

    @property
    def moment(self) -> str:
        """When it was finished, to the minute, UTC."""
        return self.finished[:16].replace("T", " ")


class ManifestRecord(Record):
    """The whole file."""

    format: int = Field(description="of this file")
    run: str = Field(description="name of the run")
    stages: dict[str, StageEntry] = Field({}, description="finished stages by name")
    versions: dict[str, str] = Field({}, description="of the packages that made the newest entry")


@dataclass(frozen=True)
class Manifest:
    """manifest.json of one run; read afresh at each question, for another process may have written it."""

    store: Store
    run: RunPaths

    def read(self) -> ManifestRecord:
        """The whole file, or an empty record where the run is new.

        Raises:
            StoreError: where the file is damaged, or of another format.
        """
        record = self.store.read_record_if_there(self.run.manifest, ManifestRecord)
        if record is None:
            return ManifestRecord(format=FORMAT, run=self.run.name)
        if record.format != FORMAT:
            where = self.store.uri_of(self.run.manifest)
            raise StoreError(f"{where}: format {record.format}, expected {FORMAT}: read it with the gaiadask that wrote it")
        return record

    def entry(self, stage: str) -> StageEntry | None:
        """The stage's entry, or None where it has not finished."""
        return self.read().stages.get(stage)

    def require(self, stage: str) -> StageEntry:
        """The stage's entry.

        Raises:
            MissingStageError: naming the command that makes it, where it has not finished.
        """
        entry = self.entry(stage)
        if entry is None:
            raise MissingStageError(
                f"run {self.run.name!r} has not got through the stage {stage} yet: make it with `gaiadask {stage} CONFIG`, or "
                "all stages with `gaiadask run CONFIG`"
            )
        return entry

    def result(self, stage: str, kind: type[RecordType]) -> RecordType:
        """The result of a finished stage.

        Raises:
            MissingStageError: where it has not finished.
            StoreError: where another version of gaiadask has written it, with other fields.
        """
        try:
            return kind.model_validate(self.require(stage).result)
        except ValidationError as error:
            name = stage.split(" ", 1)[0]
            raise StoreError(
                f"{self.store.uri_of(self.run.manifest)} has a result of {name} that another version of gaiadask wrote "
                f"({problems(error)[0]}): read it with that version, or make it again with `gaiadask {name} CONFIG --replace {name}`"
            ) from error

    def write(self, stage: str, inputs: JsonObject, result: StageResult, seconds: float) -> None:
        """Record that a stage has finished."""
        # Through JSON, so that what is compared later is what was written.
        inputs, made = json.loads(json.dumps([inputs, result.to_json()]))
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        entry = StageEntry(
            key=digest(inputs), inputs=inputs, result=made, seconds=round(seconds, 3), finished=now, summary=result.summary()
        )
        record, versions = self.read(), {name: version(name) for name in _VERSIONS_OF}
        self._write(record.model_copy(update={"stages": {**record.stages, stage: entry}, "versions": versions}))

    def remove(self, *stages: str) -> None:
        """Forget stages, before what they made changes."""
        record = self.read()
        left = {name: entry for name, entry in record.stages.items() if name not in stages}
        if len(left) < len(record.stages):
            self._write(record.model_copy(update={"stages": left}))

    def _write(self, record: ManifestRecord) -> None:
        self.store.write_json(self.run.manifest, record.model_dump(mode="json"))
