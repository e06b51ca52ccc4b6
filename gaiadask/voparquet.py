"""What VO tools (astropy, TOPCAT, STILTS) read of a parquet file's columns: a VOTable header in its key-value metadata.

The convention is IVOA's note "Parquet in the VO" (VOParquet 1.0): a VOTable document without data, whose fields are the file's columns.
"""

from __future__ import annotations

from functools import lru_cache
from xml.sax.saxutils import escape, quoteattr

import pyarrow as pa

DESCRIPTION = "description"
"""In the metadata of a schema, and of each of its fields."""
_VERSION, _CONTENT = "IVOA.VOTable-Parquet.version", "IVOA.VOTable-Parquet.content"
_DATATYPES = {
    pa.bool_(): "boolean",
    pa.uint8(): "unsignedByte",
    pa.int8(): "short",
    pa.int16(): "short",
    pa.int32(): "int",
    pa.int64(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
}
"""VOTable has no signed byte: it is read as a short."""


def vo_metadata(schema: pa.Schema) -> dict[str, str]:
    """Entries of the key-value metadata of a file with this schema."""
    return _metadata(schema.serialize().to_pybytes())


@lru_cache(maxsize=16)
def _metadata(serialized: bytes) -> dict[str, str]:
    schema = pa.ipc.read_schema(pa.py_buffer(serialized))
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE><TABLE>',
        *_description(schema.metadata),
        *map(_field, schema),
        "</TABLE></RESOURCE></VOTABLE>",
    ]
    return {_VERSION: "1.0", _CONTENT: "\n".join(lines)}


def _field(field: pa.Field) -> str:
    datatype = _DATATYPES.get(field.type)
    attributes = {"name": field.name, "datatype": datatype or "char"} | ({} if datatype else {"arraysize": "*"})
    for name in ("unit", "ucd"):
        if text := (field.metadata or {}).get(name.encode(), b"").decode():
            attributes[name] = text
    shown = " ".join(f"{name}={quoteattr(text)}" for name, text in attributes.items())
    inside = "".join(_description(field.metadata))
    return f"<FIELD {shown}>{inside}</FIELD>" if inside else f"<FIELD {shown}/>"


def _description(metadata: dict[bytes, bytes] | None) -> list[str]:
    text = (metadata or {}).get(DESCRIPTION.encode(), b"").decode()
    return [f"<DESCRIPTION>{escape(text)}</DESCRIPTION>"] if text else []
