"""What a run has made, and from what: one entry a stage, with its key and what the key is a hash of."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from gaiadask.keys import digest
from gaiadask.store.paths import RunPaths
from gaiadask.store.files import Store

FORMAT = 1
_VERSIONS_OF = ("gaiadask", "dask", "distributed", "torch", "pyarrow", "numpy", "hats", "scikit-learn")


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished stage.

    inputs: everything the result depends on, JSON-able; `key` is their digest. result: what the stage says of itself.
    """

    inputs: Mapping[str, Any]
    result: Mapping[str, Any]
    seconds: float
    finished: str

    @property
    def key(self) -> str:
        return digest(self.inputs)


@dataclass(frozen=True)
class Manifest:
    """manifest.json of one run; read afresh at each question, for another process may have written it."""

    store: Store
    run: RunPaths

    def to_json(self) -> dict[str, Any]:
        """The whole file, or an empty one where the run is new."""
        if self.store.exists(self.run.manifest):
            return dict(self.store.read_json(self.run.manifest))
        return {"format": FORMAT, "run": self.run.name, "stages": {}}

    def entry(self, stage: str) -> Entry | None:
        """The stage's entry, or None where it is not finished."""
        record = self.to_json()["stages"].get(stage)
        if record is None:
            return None
        return Entry(record["inputs"], record["result"], record["seconds"], record["finished"])

    def write(self, stage: str, inputs: Mapping[str, Any], result: Mapping[str, Any], seconds: float) -> None:
        """Record that a stage is finished."""
        value = self.to_json()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        value["versions"] = {name: version(name) for name in _VERSIONS_OF}
        # Through JSON, so that what is compared later is what was written.
        entry = json.loads(json.dumps({"inputs": inputs, "result": result}))
        value["stages"][stage] = {"key": digest(inputs), **entry, "seconds": round(seconds, 3), "finished": now}
        self.store.write_json(self.run.manifest, value)

    def remove(self, *stages: str) -> None:
        """Forget stages, before what they made changes."""
        value = self.to_json()
        held = [stage for stage in stages if stage in value["stages"]]
        for stage in held:
            del value["stages"][stage]
        if held:
            self.store.write_json(self.run.manifest, value)
