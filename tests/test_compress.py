"""The stages compress and decompress: the catalogue within its bound, gone and made again; damage, wrong wishes and interruptions."""

from __future__ import annotations

import errno
import gzip
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from codec_stars import Codec, assert_within, differ
from hats.io.validation import is_valid_catalog
from small_run import context_of, copied, make_run, small_config

import gaiadask
from gaiadask import catalogue, cli, lazy
from gaiadask.cluster.dask_workers import DaskWorkers
from gaiadask.cluster.here import Here
from gaiadask.cluster.workers import Outcomes, Task
from gaiadask.codec.compressed import Compressed
from gaiadask.codec.files import VERSION_ENTRY
from gaiadask.config.sections import Config
from gaiadask.config.toml import dump_toml, parse_config
from gaiadask.errors import ConfigurationError, DamagedFileError, DataError, KeyMismatchError, MissingStageError, StoreError
from gaiadask.product import PRODUCT_KEY
from gaiadask.release.column import HEALPIX_29
from gaiadask.run import open_run
from gaiadask.stages import compress as stage
from gaiadask.stages.compress import CompressPartition, CompressResult
from gaiadask.stages.decompress import DecompressOptions, DecompressPartition
from gaiadask.stages.engine import run_stages
from gaiadask.store.files import Store
from gaiadask.store.parquet import ParquetReader

SCREEN = 24
"""Lines of a screen, of 100 characters."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of ingest and compress alone, of several partitions; tests copy what they change."""
    config = small_config(
        tmp_path_factory.mktemp("whole") / "store",
        archive={"mock_stars": 6_000, "chunk_rows": 6_000},
        catalogue={"partition_mb": 1},
        codec={"stars": 1_000},
        selection={"columns": "seed25", "where": "dec > 42"},
    )
    make_run(config, "ingest", "compress")
    return config


@pytest.fixture
def run(whole: Config, tmp_path: Path) -> Config:
    return copied(whole, tmp_path / "store")


def compressed_of(config: Config) -> Compressed:
    return Compressed(Store(config.store), f"runs/{config.name}/compressed")


def files_of(config: Config) -> list[Path]:
    """Of the compressed partitions."""
    return sorted((Path(config.store) / "runs" / config.name / "compressed" / "dataset").rglob("*.parquet"))


def changed(config: Config, **codec: Any) -> Config:
    return config.model_copy(update={"codec": config.codec.model_copy(update=codec)})


def stars_of(store: str, folder: str, partitions: tuple[catalogue.Partition, ...]) -> pa.Table:
    return pa.concat_tables(catalogue.read_partition(Store(store), folder, p.tile) for p in partitions)


def decompressed(config: Config, folder: Path) -> pa.Table:
    """The stars of a folder that the stage decompress fills."""
    run_stages(config, ["decompress"], request=DecompressOptions(output=str(folder)), workers=Here())
    return stars_of(str(folder), "catalogue", compressed_of(config).record.partitions)


def read_all(config: Config) -> pa.Table:
    """What the compressed catalogue gives back."""
    compressed = Compressed(Store(config.store), f"runs/{config.name}/compressed")
    return pa.concat_tables(table for p in compressed.record.partitions for table in compressed.reader.iterate(p))


class Weighing(Here):
    """Work done here, whose function is sent nowhere: what would be sent with each item."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def outcomes(self, function: Callable[[Any], Any], items: Sequence[Any], task: Task[Any, Any]) -> Outcomes[Any]:
        self.sent.append(cloudpickle.dumps(function))
        return super().outcomes(function, items, task)


def test_what_goes_with_each_piece_of_work_does_not_name_the_others(run: Config, tmp_path: Path) -> None:
    """A whole release has 12,288 partitions: a list of them in each piece of work would be gigabytes through the scheduler."""
    workers, request = Weighing(), DecompressOptions(output=str(tmp_path / "stars"))
    run_stages(run, ["decompress"], request=request, workers=workers)
    context = replace(context_of(run), given_workers=workers)
    assert stage.WORK.problems and stage.WORK.problems(context, "", False) == []
    assert len(workers.sent) == 2
    lazily = cloudpickle.dumps(lazy.decompressed(compressed_of(run), ["ra"]).partitions[0].optimize().dask)
    last = compressed_of(run).record.partitions[-1].checksum.encode()
    assert not any(last in each for each in (*workers.sent, lazily))


def message(raised: pytest.ExceptionInfo[Exception], *told: str) -> None:
    """One screen, and all of that in it."""
    text = str(raised.value)
    assert all(part in text for part in told), text
    assert len(text) < SCREEN * 100 and "Traceback" not in text


# The whole way --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_catalogue_is_deleted_and_made_again_within_its_bound(run: Config, tmp_path: Path) -> None:
    record = compressed_of(run).record
    assert len(record.partitions) >= 3
    before = stars_of(run.store, "catalogue", record.partitions)
    shutil.rmtree(Path(run.store) / "catalogue")
    after = decompressed(run, tmp_path / "out")
    assert_within(before, after, Codec(compressed_of(run).card, before, {}))
    assert after.schema.equals(before.schema, check_metadata=False)
    assert 0 < max(column.worst for column in record.columns.values()) <= 1
    assert record.rows == before.num_rows == sum(p.rows for p in record.partitions)
    folder = tmp_path / "out" / "catalogue"
    assert is_valid_catalog(folder, strict=True)
    import lsdb

    assert len(lsdb.open_catalog(folder)) == before.num_rows


@pytest.mark.slow
def test_with_bound_0_every_bit_comes_back(run: Config, tmp_path: Path) -> None:
    exact = changed(run.model_copy(update={"name": "exact"}), bound_sigma=0.0)
    make_run(exact, "compress")
    partitions = compressed_of(exact).record.partitions
    before = stars_of(run.store, "catalogue", partitions)
    after = decompressed(exact, tmp_path / "out")
    assert after.equals(before)
    assert not any(differ(before[name], after[name]).any() for name in before.column_names)


def test_no_training_is_needed_and_a_second_compress_is_skipped(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = json.loads((Path(run.store) / "runs" / run.name / "manifest.json").read_text())["stages"]
    assert set(stages) >= {"compress"} and "train" not in stages and "statistics" not in stages
    monkeypatch.setattr(stage, "fit_codec", lambda *_: pytest.fail("made again"))
    before = {path: path.stat().st_mtime_ns for path in files_of(run)}
    make_run(run, "compress")
    assert {path: path.stat().st_mtime_ns for path in files_of(run)} == before


@pytest.mark.slow
def test_another_bound_is_refused_until_replaced(run: Config) -> None:
    looser = changed(run, bound_sigma=0.5)
    size = compressed_of(run).record.bytes
    with pytest.raises(KeyMismatchError) as raised:
        make_run(looser, "compress")
    message(raised, "compress", "0.1", "0.5", "--replace compress")
    assert compressed_of(run).record.bytes == size
    run_stages(looser, ["compress"], replacing=["compress"], workers=Here())
    record = compressed_of(run).record
    assert record.bound_sigma == 0.5 and record.bytes < size
    read_all(run)


@pytest.mark.slow
def test_own_bounds_and_lazy_columns_of_a_moved_folder(run: Config, tmp_path: Path) -> None:
    own = changed(run.model_copy(update={"name": "own"}), bounds={"parallax": 0.001, "teff_val": 0.0})
    make_run(own, "compress")
    before = stars_of(run.store, "catalogue", compressed_of(own).record.partitions)
    moved = tmp_path / "moved"
    shutil.move(compressed_of(own).store.path(f"runs/{own.name}/compressed"), moved)
    shutil.rmtree(run.store)
    frame = gaiadask.decompress(moved, ["teff_val", "parallax", "source_id"])
    assert list(frame.columns) == ["teff_val", "parallax", "source_id"] and frame.npartitions >= 3
    made = frame.compute(scheduler="sync")
    np.testing.assert_array_equal(made["source_id"].to_numpy(), before["source_id"].to_numpy())
    np.testing.assert_array_equal(made["teff_val"].to_numpy("f4", na_value=np.nan), before["teff_val"].to_numpy())
    off = np.abs(made["parallax"].to_numpy("f8", na_value=np.nan) - before["parallax"].to_numpy())
    assert np.nanmax(off / before["parallax_error"].to_numpy()) <= 0.001
    with pytest.raises(DataError, match=r"has no column paralax: did you mean parallax\? There are _healpix_29, source_id, ra"):
        gaiadask.decompress(moved, ["paralax"])


def test_what_a_run_offers(run: Config) -> None:
    opened = open_run(f"{run.store}/runs/{run.name}")
    partition = compressed_of(run).record.partitions[1]
    frame = opened.decompress(["ra", HEALPIX_29])
    expected = catalogue.read_partition(Store(run.store), "catalogue", partition.tile, ["ra_error", "dec", "ra"])
    part = frame.partitions[1].compute(scheduler="sync")
    off = np.abs(part["ra"].to_numpy() - expected["ra"].to_numpy()) * np.cos(np.radians(expected["dec"].to_numpy()))
    assert (off * 3.6e6 <= 0.1 * expected["ra_error"].to_numpy()).all() and off.any()
    with pytest.raises(ConfigurationError, match="codec"):
        opened.compress(bound_sigma=-1.0)
    with pytest.raises(ConfigurationError, match="codec"):
        opened.compress(bound_sigma=float("nan"))


@pytest.mark.slow
def test_on_a_cluster_as_here(run: Config, workers: DaskWorkers, tmp_path: Path) -> None:
    """Two processes make the same bytes; `run.compress` works where the configuration says."""
    here = [path.read_bytes() for path in files_of(run)]
    run_stages(run, ["compress"], replacing=["compress"], workers=workers)
    assert [path.read_bytes() for path in files_of(run)] == here
    run_stages(run, ["decompress"], request=DecompressOptions(output=str(tmp_path / "out")), workers=workers)
    assert stars_of(str(tmp_path / "out"), "catalogue", compressed_of(run).record.partitions).equals(read_all(run))
    frame = open_run(f"{run.store}/runs/{run.name}").decompress(["parallax"])
    assert len(workers.client.compute(frame).result()) == compressed_of(run).record.rows


# Interrupted ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    "death", [KeyboardInterrupt("killed"), OSError(errno.ENOSPC, "No space left on device")], ids=["killed", "full"]
)
def test_an_interrupted_compress_goes_on(run: Config, monkeypatch: pytest.MonkeyPatch, death: BaseException) -> None:
    """What was made before stays, what is finished is not made again, and nothing looks whole that is not."""
    fresh = run.model_copy(update={"name": "fresh"})
    work, calls = CompressPartition._chunks, [0]

    def dies(self: CompressPartition, source: catalogue.Partition) -> Any:
        calls[0] += 1
        for chunk in work(self, source):
            yield chunk
            if calls[0] == 2:
                raise death

    monkeypatch.setattr(CompressPartition, "_chunks", dies)
    with pytest.raises((KeyboardInterrupt, StoreError)) as raised:
        make_run(fresh, "compress")
    if isinstance(death, OSError):
        assert "room" in str(raised.value), raised.value
    monkeypatch.setattr(CompressPartition, "_chunks", work)
    (first,) = files_of(fresh)
    with pytest.raises(
        StoreError, match=r"no whole compressed catalogue \(no compressed.json\): make it with `gaiadask compress CONFIG`"
    ):
        _ = compressed_of(fresh).record
    before = first.stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(stage, "fit_codec", lambda *_: pytest.fail("fitted again"))
        make_run(fresh, "compress")
    assert first.stat().st_mtime_ns == before
    assert read_all(fresh).equals(read_all(run))


def test_only_a_whole_card_of_the_same_inputs_is_gone_on_with(run: Config) -> None:
    compressed, folder = compressed_of(run), Path(run.store) / "runs" / run.name / "compressed"
    key, card = compressed.record.key, (folder / "codec.json.gz").read_bytes()
    assert compressed.fitted_for(key) == compressed.record.card
    assert compressed.fitted_for("of other inputs") is None
    for name, content in (("codec.json.gz", card[:-1]), ("fitted.json", b"{"), ("fitted.json", b"[]")):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        assert compressed.fitted_for(key) is None
        (folder / name).write_bytes(good)
    (folder / "codec.json.gz").unlink()
    assert compressed.fitted_for(key) is None


def test_an_interrupted_decompress_publishes_nothing(run: Config, tmp_path: Path) -> None:
    files_of(run)[-1].write_bytes(b"PAR1")
    with pytest.raises(StoreError):
        decompressed(run, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("hats.properties"))


@pytest.mark.slow
def test_a_decompress_without_room_says_so_and_goes_on(run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, calls = DecompressPartition._stars, [0]

    def full(self: DecompressPartition, source: catalogue.Partition) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        yield from work(self, source)

    with monkeypatch.context() as patched:
        patched.setattr(DecompressPartition, "_stars", full)
        with pytest.raises(StoreError) as raised:
            decompressed(run, tmp_path / "out")
    message(raised, "No space left on device", "make room", "Npix=")
    (first,) = (tmp_path / "out").rglob("Npix=*.parquet")
    before = first.stat().st_mtime_ns
    assert not list((tmp_path / "out").rglob("hats.properties"))
    assert decompressed(run, tmp_path / "out").equals(read_all(run))
    assert first.stat().st_mtime_ns == before


# Damage ---------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_flipped_byte_anywhere_in_a_partition_is_named(run: Config) -> None:
    compressed, random = compressed_of(run), np.random.default_rng(0)
    path, good = files_of(run)[1], read_all(run)
    (partition,) = [p for p in compressed.record.partitions if Path(run.store, compressed.partition(p.tile)) == path]
    content = path.read_bytes()
    start = sum(p.rows for p in compressed.record.partitions[: compressed.record.partitions.index(partition)])
    named = 0
    for place in [*random.integers(0, len(content), 60), *range(len(content) - 12, len(content))]:
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << int(random.integers(8)))]) + content[place + 1 :])
        try:
            table = pa.concat_tables(compressed.reader.iterate(partition))
        except StoreError as error:
            assert path.name in str(error) and len(str(error)) < SCREEN * 100
            named += 1
        else:
            assert table.equals(good.slice(start, partition.rows))  # a byte of the footer that says nothing of the stars
    assert named > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.unlink(), "Npix="),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is not a whole parquet file"),
        (lambda path: path.write_bytes(b""), "is not a whole parquet file"),
        (lambda path: rewritten(path, {PRODUCT_KEY: "of another"}), "does not belong to what is used with it (gaiadask.key: 'of another' there"),
        (lambda path: rewritten(path, {VERSION_ENTRY: "2"}), "version '2' of the compressed format, expected 1"),
        (lambda path: rewritten(path, {VERSION_ENTRY: None}), "version 'none' of the compressed format, expected 1"),
        (lambda path: rewritten(path, {}, rows=0), "it is not one row of parts"),
    ],
    ids=["missing", "cut", "empty", "of another catalogue", "newer", "foreign", "no chunk"],
)  # fmt: skip
def test_a_damaged_partition_is_named_and_made_anew(run: Config, damage: Callable[[Path], None], told: str) -> None:
    path = files_of(run)[1]
    content, others = path.read_bytes(), [p.stat().st_mtime_ns for p in files_of(run) if p != path]
    good = read_all(run)
    damage(path)
    with pytest.raises((StoreError, KeyMismatchError, DamagedFileError)) as raised:
        read_all(run)
    message(raised, told, path.name)
    replacing = ["compress"] if "version" in told else []  # what a newer version wrote is not taken for damage
    run_stages(run, ["compress"], replacing=replacing, workers=Here())
    assert read_all(run).equals(good)
    assert path.read_bytes() == content
    if replacing:
        return
    assert [p.stat().st_mtime_ns for p in files_of(run) if p != path] == others


def rewritten(path: Path, metadata: dict[str, str | None], rows: int | None = None) -> None:
    """The file again, with other entries in its footer, or fewer chunks."""
    table = pq.read_table(path)
    found = {k.decode(): v.decode() for k, v in pq.read_metadata(path).metadata.items()}
    with pq.ParquetWriter(path, table.schema.remove_metadata(), store_schema=False) as writer:
        writer.write_table(table.slice(0, rows).replace_schema_metadata(None))
        writer.add_key_value_metadata({k: v for k, v in (found | metadata).items() if v is not None})


def test_a_damaged_card_or_record_is_named(run: Config) -> None:
    folder = Path(run.store) / "runs" / run.name / "compressed"
    good = read_all(run)
    card, record = (folder / "codec.json.gz").read_bytes(), json.loads((folder / "compressed.json").read_text())
    for content in (card[:-1] + b"!", card[:50], b"", gzip.compress(b"{}")):
        (folder / "codec.json.gz").write_bytes(content)
        with pytest.raises(StoreError) as raised:
            read_all(run.model_copy(update={"store": f"{run.store}/."}))  # not the one that is remembered
        message(
            raised, "codec.json.gz is not the file that compressed.json was written for", "restore it", "gaiadask compress CONFIG"
        )
    (folder / "codec.json.gz").write_bytes(card)
    for change, told in (
        ({"version": 2}, "version 2 of the compressed format, expected 1: read it with the gaiadask that wrote it, or a newer one"),
        ({"version": "x"}, "version 'x' of the compressed format"),
        ({"rows": "many"}, "compressed.json"),
        ({"key": "other"}, "Npix="),
    ):
        (folder / "compressed.json").write_text(json.dumps(record | change))
        with pytest.raises((StoreError, KeyMismatchError)) as raised:
            read_all(run)
        message(raised, told)
    for text in ("", "{", "[]", json.dumps(record)[:-10]):
        (folder / "compressed.json").write_text(text)
        with pytest.raises(StoreError, match=r"compressed\.json"):
            read_all(run)
    make_run(run, "compress")
    assert read_all(run).equals(good)


# Wrong wishes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("codec", "told"),
    [
        ({"bound_sigma": -0.1}, "codec.bound_sigma"),
        ({"bound_sigma": "nan"}, "codec.bound_sigma"),
        ({"bound_sigma": float("nan")}, "codec.bound_sigma"),
        ({"bound_sigma": "much"}, "codec.bound_sigma"),
        ({"bounds": {"parallax": -1.0}}, "codec.bounds.parallax is -1.0: expected a number of 0"),
        ({"bounds": {"parallax": float("nan")}}, "codec.bounds.parallax: Input should be a finite number"),
        ({"stars": 1}, "codec.stars"),
    ],
)
def test_wrong_options_are_refused(run: Config, codec: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse_config(run.to_json() | {"codec": codec})
    message(raised, told)


def test_bounds_of_columns_that_are_none_are_refused_before_anything_is_lost(run: Config) -> None:
    good = read_all(run)
    for bounds, told in (
        ({"paralax": 0.1}, "codec.bounds: the catalogue has no column paralax: did you mean parallax? There are source_id, ra,"),
        ({"bp_rp": 0.1}, "bp_rp follows from"),
    ):
        with pytest.raises(ConfigurationError) as raised:
            run_stages(changed(run, bounds=bounds), ["compress"], replacing=["compress"], workers=Here())
        message(raised, told)
    assert read_all(run).equals(good)


@pytest.mark.slow
def test_a_column_without_its_error_column_is_exact_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = ["ra", "dec", "dec_error", "parallax", "phot_g_mean_flux", "phot_g_mean_flux_error"]
    config = small_config(
        tmp_path / "store",
        archive={"mock_stars": 1_500},
        selection={"columns": columns},
        codec={"stars": 1_000},
        model={"columns": columns},
    )
    with caplog.at_level(logging.WARNING, "gaiadask"):
        result = run_stages(config, ["ingest", "compress"], workers=Here())["compress"]
    assert isinstance(result, CompressResult) and result.exact == ("ra", "parallax")
    assert "compress: parallax is exact: its error column parallax_error is not in the catalogue" in caplog.text
    before = stars_of(config.store, "catalogue", compressed_of(config).record.partitions)
    after = read_all(config)
    assert not differ(before["parallax"], after["parallax"]).any() and not differ(before["ra"], after["ra"]).any()
    assert differ(before["dec"], after["dec"]).any()
    assert_within(before, after, Codec(compressed_of(config).card, before, {}))


def test_without_a_catalogue_or_a_compressed_one_the_command_is_named(run: Config, tmp_path: Path) -> None:
    with pytest.raises(MissingStageError, match="gaiadask ingest"):
        make_run(small_config(tmp_path / "empty"), "compress")
    other = run.model_copy(update={"name": "other"})
    with pytest.raises((MissingStageError, StoreError), match="gaiadask compress"):
        decompressed(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_catalogue_that_changed_is_not_compressed(run: Config) -> None:
    """A row fewer than was written, before it begins or once it has begun: named, and nothing is published."""
    fresh = run.model_copy(update={"name": "fresh"})
    partition = context_of(run).catalogue.partitions[0]
    path = Path(run.store) / "catalogue" / partition.tile.file
    table = ParquetReader(str(path), lambda: pq.ParquetFile(path), 1.0).read()
    pq.write_table(table.slice(1), path)
    with pytest.raises(MissingStageError, match=r"what ingest made is missing or damaged: .*`gaiadask ingest CONFIG`"):
        make_run(fresh, "compress")
    with pytest.raises(DataError, match=r"rows, \d+ were written: it was changed since\. Run `gaiadask ingest CONFIG`"):
        stage.WORK.make(context_of(fresh), "key")
    assert len(files_of(fresh)) < len(files_of(run))
    with pytest.raises(StoreError, match=r"no compressed\.json"):
        _ = compressed_of(fresh).record


# The commands ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_commands(
    run: Config, workers: DaskWorkers, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """compress, what is there is skipped, decompress, info, validate; run.compress on the configuration's cluster."""
    address = workers.client.scheduler_info()["address"]
    config = run.model_copy(update={"name": "commands", "cluster": run.cluster.model_copy(update={"address": address})})
    (file := tmp_path / "gaia.toml").write_text(dump_toml(config, comments=False))

    def command(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["gaiadask", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        assert not ended.value.code, told.err
        return re.sub(r"\s+", " ", told.out + told.err)

    told = command("compress", file)
    assert re.search(
        r"\d+ stars in \d+\.\d\d bytes each, \d\d\.\d% of the catalogue; every value was decoded, the worst is at 0\.\d+ of", told
    )
    before = [path.stat().st_mtime_ns for path in files_of(config)]
    assert told.startswith(command("compress", file)) and [path.stat().st_mtime_ns for path in files_of(config)] == before
    told = command("decompress", file, "-o", tmp_path / "out")
    assert re.search(rf"\d+ stars in \d+ partitions: .*{tmp_path.name}/out/catalogue", told)
    assert is_valid_catalog(tmp_path / "out" / "catalogue", strict=True)
    assert re.search(r"compress", command("info", file))
    command("validate", file)
    record = open_run(f"{run.store}/runs/commands").compress()
    assert record.rows > 500 and record == compressed_of(config).record
    with pytest.raises(KeyMismatchError):
        open_run(f"{run.store}/runs/commands").compress(bound_sigma=1.0)
