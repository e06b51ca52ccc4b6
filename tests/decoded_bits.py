"""What decodes of chunks, as hashes of every bit: in this process or, as a program, in another with other instruction sets."""

from __future__ import annotations

import hashlib
import pickle
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gaiadask.codec.chunk import decode_chunk
from gaiadask.release.dr2 import DR2
from gaiadask.store.paths import Tile


def digests_of(path: Path) -> list[str]:
    """Of each chunk in a file: of all bits of its values and nulls."""
    digests = []
    for rows, blobs, card, names in pickle.loads(path.read_bytes()):
        sink = pa.BufferOutputStream()
        pq.write_table(decode_chunk(rows, blobs, card, Tile(0, 0), DR2, names), sink)
        digests.append(hashlib.sha256(sink.getvalue()).hexdigest())
    return digests


if __name__ == "__main__":
    from numpy._core._multiarray_umath import __cpu_features__

    sys.stdout.write(f"{[name for name in sys.argv[2:] if __cpu_features__[name]]} {digests_of(Path(sys.argv[1]))}")
