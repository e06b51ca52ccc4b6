"""A dummy kind of archive: a grid of stars in two chunks. One file and one line of the table `kinds.ARCHIVES` add a kind."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from gaiadask.archive.base import Archive, Identity
from gaiadask.archive.chunks import Chunk, ChunkFacts, Note, Plan
from gaiadask.sky import SOURCE_ID_SHIFT, SOURCE_ID_STOP, centre, healpix_of_source_id

STARS = 12 * 4**3


class DummyArchive(Archive):
    """One star at the centre of each HEALPix pixel of order 3; every other one has no parallax."""

    def identity(self) -> Identity:
        return Identity(kind="dummy")

    def plan(self) -> Plan:
        half = SOURCE_ID_STOP // 2
        chunks = (
            Chunk("first", 0, half, expected_rows=STARS // 2),
            Chunk("second", half, SOURCE_ID_STOP, expected_rows=STARS // 2),
        )
        return Plan(3, np.ones(STARS, np.int64), chunks)

    def fetch(self, chunk: Chunk, note: Note) -> Iterator[pa.Table]:
        note(ChunkFacts(counted=chunk.expected_rows))
        healpix_12 = (np.arange(STARS) << 18) | (1 << 17)
        ids = healpix_12 << SOURCE_ID_SHIFT
        ids = ids[(ids >= chunk.first) & (ids < chunk.stop)]
        ra, dec = centre((ids >> SOURCE_ID_SHIFT) << 34)
        parallax = pa.array(np.ones(len(ids)), mask=healpix_of_source_id(ids, 3) % 2 == 1)
        yield pa.table([ids, ra, dec, parallax], schema=self.schema)
