"""What a finished run makes when it is asked to, beside its stages: every star rebuilt, and new stars."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from distributed import Client

from gaiadask.cluster.workers import over_partitions
from gaiadask.config.sections import Config
from gaiadask.decode import decode_partition
from gaiadask.errors import StoreError
from gaiadask.progress import Progress, Silent
from gaiadask.sample import EVERYTHING, Request, SampleBlocks, Wanted, blocks_of, claim_output
from gaiadask.stages.context import Context, Result
from gaiadask.store.files import Store


def decode_all(config: Config, output: str, impute: bool = False, progress: Progress | None = None) -> int:
    """Rebuild every star of a run into parquet files, one a partition, at `output` (any fsspec URI); returns their rows.

    impute: as `gaiadask.decode.decode` takes it.
    """
    with ExitStack() as resources:
        context = Context(config, progress or Silent(), resources)
        context.key("encode")
        strangers = set(Store(output).list("")) - {f"{tile.flat_name}.parquet" for tile in context.catalogue.tiles}
        if strangers:
            raise StoreError(f"{output} holds other files ({min(strangers)}, for one): name another folder for the rebuilt stars")
        work = partial(decode_partition, context.store, context.run, context.key("train"), Store(output), impute=impute)
        rows = over_partitions(
            context.client,
            work,
            context.catalogue.partitions,
            task="decode",
            name_of=lambda p: str(p.tile),
            progress=context.progress,
        )
    return sum(rows)


def sample_all(
    config: Config, stars: int, seed: int = 0, wanted: Wanted = EVERYTHING, output: str = "", progress: Progress | None = None,
    client: Client | None = None,
) -> Result:  # fmt: skip
    """Draw `stars` new stars into parquet files, one a block, at `output` (any fsspec URI; by default the run's samples/).

    Blocks that are there already, of the same request, are kept. Returns rows, files and where. Raises StoreError where
    the folder holds anything else.
    """
    with ExitStack() as resources:
        context = Context(config, progress or Silent(), resources, client)
        request = Request.of(context.store, context.manifest, stars, seed, wanted)
        where = Store(output or context.store.uri_of(context.run.samples))
        claim_output(where, request)
        draw = partial(SampleBlocks(context.store, context.run, request).write, where)
        rows = over_partitions(
            context.client, draw, range(blocks_of(stars)), task="sample", unit="blocks", progress=context.progress
        )
    return {"rows": sum(rows), "files": len(rows), "uri": where.uri}
