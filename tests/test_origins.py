"""What belongs together is compared wherever it is used: catalogue, statistics, model, latents, prior; what is lost is made again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from small_run import copied, make_run, small_config

from gaiadask import catalogue, publishing
from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.errors import (
    GaiadaskError,
    KeyMismatchError,
    MissingStageError,
)
from gaiadask.quality.files import rating_is_whole
from gaiadask.run import open_run
from gaiadask.stages.decode import DecodeOptions
from gaiadask.stages.engine import run_stages
from gaiadask.stages.sample import SampleOptions
from gaiadask.store import paths
from gaiadask.store.artifact import Artifact
from gaiadask.store.files import Store
from gaiadask.store.lease import Lease
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

RUN = RunPaths("small")
NORTH, SOUTH = "dec > 0", "dec < 0"


def of(where: str, store: str | Path, name: str) -> Config:
    """A run of the stars of a condition."""
    selection = {"not_null": (), "where": where}
    return small_config(store, name=name, selection=selection, archive={"mock_stars": 3_000, "chunk_rows": 1_000})


def content(store: str | Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(store).rglob("*") if path.is_file()}


@pytest.fixture
def made(small_run: Config, tmp_path: Path) -> Config:
    """A run made up to its prior, to be changed."""
    return copied(small_run, tmp_path / "store")


def exchange_weights(config: Config) -> None:
    """Put other weights under the model's key, as a second training on another machine leaves them."""
    store = Store(config.store)
    weights = safetensors.numpy.load(store.read_bytes(RUN.weights))
    name = next(iter(weights))
    weights[name] = weights[name] + 0.25
    card = {name: value for name, value in store.read_json(RUN.card).items() if name not in ("format_version", "weights_sha256")}
    Artifact(RUN.weights, RUN.card, 2, "").save(store, safetensors.numpy.save(weights), card)


# Another catalogue ----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_run_whose_catalogue_was_replaced_says_so_and_makes_nothing_of_the_other_stars(tmp_path: Path) -> None:
    north, south = of(NORTH, tmp_path, "north"), of(SOUTH, tmp_path, "south")
    make_run(north, "ingest")
    run_stages(south, ["ingest"], replacing=["ingest"], workers=Here())
    before = content(tmp_path)
    third = of(NORTH, tmp_path, "third")
    for config, stages in ((north, ["ingest", "statistics"]), (north, ["statistics"]), (third, ["statistics"])):
        with pytest.raises(KeyMismatchError, match=r"catalogue of another selection .*where: 'dec < 0' there, 'dec > 0' asked for"):
            make_run(config, *stages)
    assert content(tmp_path) == before
    with pytest.raises(
        KeyMismatchError, match=r"ingest of run 'north' does not belong .*catalogue_id: .* another run has replaced it"
    ):
        open_run(tmp_path / "runs" / "north").catalogue()
    make_run(south, "ingest", "statistics")


@pytest.mark.slow
def test_frames_of_a_run_notice_that_the_catalogue_was_replaced(made: Config) -> None:
    run = open_run(f"{made.store}/runs/small")
    stars, latents = run.catalogue(), run.latent()
    other = small_config(made.store, name="other", archive={"mock_stars": 3_000})
    run_stages(other, ["ingest"], replacing=["ingest"], workers=Here())
    for read in (run.catalogue, run.latent, lambda: open_run(f"{made.store}/runs/small").latent()):
        with pytest.raises(KeyMismatchError, match=r"catalogue_id: '\w+' there, '\w+' asked for"):
            read()
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(KeyMismatchError, match=r"Npix=\d+\.parquet does not belong .*gaiadask\.selection"):
            stars.compute()
        assert len(latents.compute()) == 12_000, "the latents are still there, and of the stars that they were of"


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil", [Path.unlink, lambda file: pq.write_table(pq.read_table(file).slice(0, 5), file)], ids=["gone", "cut"]
)
@pytest.mark.parametrize("name", ["small", "other"], ids=["own", "of another run"])
def test_a_partition_that_is_not_whole_is_noticed_before_a_stage_begins(
    made: Config, spoil: Callable[[Path], Any], name: str
) -> None:
    """Whichever run ingested it; and the command that is named makes it again."""
    config = made.model_copy(update={"name": name})
    make_run(config, "statistics")
    file = next(Path(made.store, paths.CATALOGUE).rglob("Npix=*.parquet"))
    spoil(file)
    Manifest(Store(made.store), RunPaths(name)).remove("train", "encode")
    for stage in ("train", "encode") if name == "small" else ("statistics", "train"):
        with pytest.raises(MissingStageError, match=r"what ingest made is missing or damaged: .*`gaiadask ingest CONFIG`"):
            run_stages(config, [stage], replacing=[stage] if stage == "statistics" else [], workers=Here())
    make_run(config, "ingest", "statistics", "train")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [paths.SELECTION, paths.PUBLISHED])
def test_a_lost_selection_is_not_any_selection(tmp_path: Path, lost: str) -> None:
    north, south = of(NORTH, tmp_path, "north"), of(SOUTH, tmp_path, "south")
    make_run(north, "ingest")
    kept = (tmp_path / paths.SELECTION).read_bytes()
    (tmp_path / lost).unlink()
    with pytest.raises(GaiadaskError, match=r"another selection|holds no catalogue"):
        make_run(south, "ingest")
    if lost == paths.SELECTION:
        make_run(north, "ingest", "statistics")
        Manifest(Store(str(tmp_path)), RunPaths("north")).remove("ingest")
        make_run(north, "ingest")
        assert (tmp_path / paths.SELECTION).read_bytes() == kept, "the catalogue's record has it too"


def test_a_catalogue_that_is_not_its_records_is_not_read(made: Config) -> None:
    store = Store(made.store)
    record = store.read_json(paths.PUBLISHED)
    store.write_json(paths.PUBLISHED, {**record, "id": "0123456789abcdef"})
    with pytest.raises(KeyMismatchError, match=r"catalogue\.json does not belong .*.0123456789abcdef. there"):
        open_run(f"{made.store}/runs/small").catalogue()


# Other weights --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_latents_are_not_used_with_other_weights_than_those_that_made_them(made: Config, tmp_path: Path) -> None:
    run = open_run(f"{made.store}/runs/small")
    rebuilt = run.decode(run.latent())
    exchange_weights(made)
    with dask.config.set(scheduler="synchronous"), pytest.raises(KeyMismatchError, match=r"is the model of weights .*expected"):
        rebuilt.compute()
    again = open_run(f"{made.store}/runs/small")
    for use in (again.latent, lambda: again.sample(10), lambda: again.prior):
        with pytest.raises(KeyMismatchError, match=r"encode of run 'small' does not belong .*weights: "):
            use()
    for stage, request in (("decode", DecodeOptions(output=str(tmp_path / "stars"))), ("sample", SampleOptions(stars=5))):
        with pytest.raises(KeyMismatchError, match=r"has a encode made from other inputs \(weights: .* there, .* asked for\)"):
            run_stages(made, [stage], request=request, workers=Here())
    assert not (tmp_path / "stars").exists()
    with pytest.raises(KeyMismatchError, match="weights"):
        make_run(made)
    run_stages(made, ["encode", "prior"], replacing=["encode"], workers=Here())
    assert len(open_run(f"{made.store}/runs/small").latent()) == 12_000


@pytest.mark.slow
def test_a_frame_of_latents_knows_its_model(made: Config, tmp_path: Path) -> None:
    address = f"{made.store}/runs/small"
    run = open_run(address)
    with dask.config.set(scheduler="synchronous"):
        latents = run.latent().get_partition(0).compute()
        stars = run.catalogue().get_partition(0).compute()
    of_arrow = run.encode(pa.Table.from_pandas(stars, preserve_index=False))
    pq.write_table(of_arrow, tmp_path / "latents.parquet")
    frames = {
        "of the run": latents.head(50), "encoded": run.encode(stars), "arrow": of_arrow,
        "a file": pq.read_table(tmp_path / "latents.parquet"),
        "a file of the run": pq.read_table(Store(made.store).path(f"{RUN.latent}/{run.catalogue_record.tiles[0].file}")),
    }  # fmt: skip
    for frame in frames.values():
        assert len(run.decode(frame)) == len(frame)
    exchange_weights(made)
    other = open_run(address)
    for name, frame in frames.items():
        with pytest.raises(KeyMismatchError, match=r"the latents were encoded by the model with the weights \w{12}…"):
            pytest.fail(f"{name}: {len(other.decode(frame))} stars")
    with dask.config.set(scheduler="synchronous"), pytest.raises(KeyMismatchError, match="encoded by the model with the weights"):
        other.decode(dd.from_pandas(frames["encoded"], npartitions=2)).compute()
    bare = of_arrow.replace_schema_metadata(None)
    assert len(other.decode(bare)) == len(bare), "without the entry they may be anybody's"


@pytest.mark.slow
def test_latent_files_of_another_model_are_refused_one_by_one(made: Config) -> None:
    run, store = open_run(f"{made.store}/runs/small"), Store(made.store)
    name = store.path(store.list(f"{RUN.latent}/dataset", ".parquet")[0])
    table = pq.read_table(name)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, catalogue.WEIGHTS_ENTRY.encode(): b"other"}), name)
    with dask.config.set(scheduler="synchronous"), pytest.raises(KeyMismatchError, match=r"gaiadask\.weights: 'other' there"):
        run.latent().compute()
    make_run(made, "encode")
    with dask.config.set(scheduler="synchronous"):
        assert len(run.latent().compute()) == 12_000


def test_a_result_whose_origin_was_replaced_meanwhile_is_not_entered(made: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = publishing.publish

    def publish_late(*arguments: Any) -> None:
        publish(*arguments)
        exchange_weights(made)

    Manifest(Store(made.store), RUN).remove("encode")
    monkeypatch.setattr(publishing, "publish", publish_late)
    with pytest.raises(KeyMismatchError, match=r"encode: what it is made from was replaced while it was made \(weights: "):
        make_run(made, "encode")
    assert Manifest(Store(made.store), RUN).entry("encode") is None


# What is lost is made again -------------------------------------------------------------------------------------------
def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def all_of(config: Config) -> dict[str, bytes]:
    """The content of every file that a second run gives to the bit."""
    temporary = (paths.LEASE, "manifest.json", "config.toml", "metrics.jsonl", "card.json")
    return {
        name: data
        for path, data in content(config.store).items()
        if not (name := path.removeprefix(config.store)).endswith(temporary)
        and "checkpoints" not in name
        and "/ledger/" not in name
    }


@pytest.mark.slow
@pytest.mark.parametrize("harm", [Path.unlink, cut])
@pytest.mark.parametrize(
    "name",
    [
        RUN.statistics, RUN.card, RUN.weights, RUN.prior_card, RUN.prior_weights, f"{RUN.latent}/dataset/Norder=0/Dir=0/Npix=3.parquet",
        f"{paths.CATALOGUE}/dataset/Norder=0/Dir=0/Npix=3.parquet",
    ],
)  # fmt: skip
def test_what_is_lost_or_cut_is_made_again(made: Config, name: str, harm: Callable[[Path], object]) -> None:
    before = all_of(made)
    file = Path(made.store) / name
    if not file.exists():
        file = next(path for path in sorted(Path(made.store).rglob("*.parquet")) if name.split("/dataset")[0] in str(path))
    harm(file)
    lost_stage = {"catalogue": "ingest", "statistics.json": "statistics", "model": "train", "latent": "encode", "prior": "prior"}
    stage = next(stage for part, stage in lost_stage.items() if f"/{part}" in f"/{name}")
    if stage != "prior":
        with pytest.raises(
            MissingStageError, match=rf"what {stage} made is missing or damaged: make it again with `gaiadask {stage} "
        ):
            make_run(made, "prior")
    make_run(made)
    assert all_of(made) == before


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ratings_that_are_lost_are_made_again(made: Config) -> None:
    make_run(made, "evaluate", "report")
    before, key = all_of(made), Manifest(Store(made.store), RUN).require("evaluate").key
    root = Path(made.store) / RUN.root
    for name in ("quality.json", "rated/real.parquet", "rated/latents.parquet", "rated/walks.parquet"):
        for harm in (cut, Path.unlink):
            kept = (root / name).read_bytes()
            harm(root / name)
            optional = harm is Path.unlink and name == "rated/walks.parquet"
            assert rating_is_whole(Store(made.store), RUN, made.release, key) == optional, name
            (root / name).write_bytes(kept)
    assert not rating_is_whole(Store(made.store), RUN, made.release, "another")
    cut(root / "quality.json")
    (root / "report.html").unlink()
    make_run(made, "evaluate", "report")
    assert timeless(all_of(made)) == timeless(before)
    assert (root / "report.html").exists()


def timeless(files: dict[str, bytes]) -> dict[str, bytes]:
    """Files without the times that ratings took; the page that shows them is left out."""
    seconds = re.compile(rb'"seconds_per_fit": [-+.e0-9]+')
    return {name: seconds.sub(b"", data) for name, data in files.items() if not name.endswith("report.html")}


@pytest.mark.slow
@pytest.mark.parametrize("harm", [Path.unlink, cut])
def test_stars_that_are_lost_are_made_again(made: Config, tmp_path: Path, harm: Callable[[Path], object]) -> None:
    def make() -> None:
        run_stages(made, ["decode"], request=DecodeOptions(output=str(tmp_path / "stars")), workers=Here())
        run_stages(made, ["sample"], request=SampleOptions(stars=5, output=str(tmp_path / "new")), workers=Here())

    make()
    before = content(tmp_path / "stars") | content(tmp_path / "new")
    for folder in ("stars", "new"):
        harm(sorted((tmp_path / folder).glob("*.parquet"))[0])
    make()
    assert content(tmp_path / "stars") | content(tmp_path / "new") == before


@pytest.mark.slow
def test_statistics_of_another_key_are_not_used(made: Config) -> None:
    store = Store(made.store)
    store.write_json(RUN.statistics, {**store.read_json(RUN.statistics), "key": "0123456789abcdef"})
    with pytest.raises(MissingStageError, match="gaiadask statistics"):
        make_run(made, "train")
    make_run(made, "statistics", "train")


# Nothing is dropped before it is known that it can be made again ------------------------------------------------------
def refused(config: Config, *, match: str, stages: tuple[str, ...] = ("ingest",), replace: str = "ingest", **more: Any) -> None:
    before = content(config.store)
    with pytest.raises(GaiadaskError, match=match):
        run_stages(config, list(stages), replacing=[replace], workers=Here(), **more)
    after = content(config.store)
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} <= {name for name in before if name.endswith(paths.LEASE)}


def changed(config: Config, section: str, **options: Any) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=options)})


@pytest.mark.slow
@pytest.mark.parametrize("where", ["parallaxe > 1", "parallax > ", "parallax > 'a'"])
def test_a_condition_that_cannot_be_met_drops_nothing(made: Config, where: str) -> None:
    refused(changed(made, "selection", where=where), match="parallax")


def test_files_that_are_not_there_drop_nothing(made: Config) -> None:
    refused(changed(made, "archive", kind="files", uris=("/nowhere/a.csv",)), match="matches no file")


@pytest.mark.parametrize("held", [paths.INGEST_LEASE, RUN.lease])
def test_a_lease_that_is_held_drops_nothing(made: Config, held: str) -> None:
    with Lease(Store(made.store), held):
        refused(changed(made, "archive", mock_stars=3_000), match="one writer at a time")


def test_what_is_needed_and_not_made_is_not_dropped(made: Config) -> None:
    refused(made, match="ingest would be dropped, which this command needs", stages=("statistics",))
    refused(changed(made, "training", rows_seen=1), match="rows_seen", stages=("encode",), replace="encode")


@pytest.mark.slow
def test_requests_that_cannot_be_met_drop_no_stars(made: Config, tmp_path: Path) -> None:
    run_stages(made, ["sample"], request=SampleOptions(stars=5), workers=Here())
    nowhere = SampleOptions(stars=5, magnitude=(1.0, 0.5))
    refused(made, match="magnitude", stages=("sample",), replace="sample", request=nowhere)
    (Path(made.store) / RUN.samples / "notes.txt").write_text("mine")
    refused(made, match="notes.txt", stages=("sample",), replace="sample", request=SampleOptions(stars=5))
    assert Manifest(Store(made.store), RUN).entry("sample") is not None


@pytest.mark.slow
def test_what_is_dropped_is_listed_with_its_size(made: Config, caplog: pytest.LogCaptureFixture) -> None:
    run_stages(made, ["encode"], replacing=["encode"], workers=Here())
    assert any("dropped encode (" in text and "prior (" in text and "kB" in text for text in caplog.messages), caplog.messages
