"""JSON schemas of the files that describe a run: `python -m gaiadask.quality.schemas docs/schemas` writes them anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gaiadask.model.card import ModelCard
from gaiadask.quality.records import Quality
from gaiadask.records import Record

RECORDS: dict[str, type[Record]] = {"quality.schema.json": Quality, "card.schema.json": ModelCard}


def schema_text(record: type[Record]) -> str:
    """JSON schema of the file that a record becomes."""
    return json.dumps(record.model_json_schema(mode="serialization"), indent=1, ensure_ascii=False) + "\n"


def write_schemas(folder: Path) -> None:
    """Write every schema into a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, record in RECORDS.items():
        (folder / name).write_text(schema_text(record), encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
