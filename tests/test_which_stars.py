"""Which stars each step is given: one catalogue is made three more times, the values of one part's stars changed, and whatever
must not depend on that part comes out the same to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray
from small_run import fetched, make_run, small_config

from gaiadask import catalogue
from gaiadask.config.sections import Config
from gaiadask.ingest import read_catalogue_record
from gaiadask.inputs.statistics import Statistics
from gaiadask.model import load_model
from gaiadask.prior import fitting as prior_fitting
from gaiadask.prior import load_prior
from gaiadask.quality import gather
from gaiadask.quality.files import read_rated
from gaiadask.quality.reconstruction import rate_columns
from gaiadask.release.column import DEC, RA, SOURCE_ID
from gaiadask.release.dr2 import DR2
from gaiadask.sample import sample
from gaiadask.split import Part, hash64, part_of, smallest
from gaiadask.stages import evaluate, tune
from gaiadask.stages.statistics import read_statistics
from gaiadask.store.files import Store
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths
from gaiadask.training import loop, rounding
from gaiadask.training.batches import TrainBatches
from gaiadask.training.checkpoint import read_checkpoint
from gaiadask.training.codes import Codec
from gaiadask.training.metrics import read_metrics
from gaiadask.training.search import SearchRecord

STARS = 6_000
ROWS = 300
"""Stars that are rated, and validation stars of training, of the prior and of the search: fewer than there are."""

# Whole runs, which any worker could be busy with.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def configuration(store: Path, stars: Path) -> Config:
    return small_config(
        store,
        archive={"kind": "files", "uris": [str(stars)], "chunk_rows": 2_000},
        model={"latents": 4, "hidden": (16,)},
        # No stopping early, so that how long training lasts does not depend on validation stars.
        training={"rows_seen": 20_000, "validate_every_rows": 5_000, "validation_rows": ROWS, "patience": 100},
        prior={"rows_seen": 4_000, "hidden": (8,), "transforms": 1, "validation_stars": ROWS, "stars": 2_000, "patience": 100},
        quality={"rows": ROWS, "two_sample_rows": 100, "two_sample_seeds": 1},
        tune={"model": {"latents": [2, 3]}, "rows_seen": 5_000, "validation_rows": ROWS},
    )


def poisoned(stars: pa.Table, part: Part) -> pa.Table:
    """The stars, of which those of one part change places among themselves, have other values, and lack some that no star lacks."""
    here = np.flatnonzero(part_of(stars[SOURCE_ID].to_numpy()) == part)
    turned = np.arange(len(stars))
    turned[here] = np.roll(here, 1)
    for name in stars.column_names:
        if name in (RA, DEC):
            values = stars[name].take(turned)  # the same places, so that the catalogue is cut as before
        elif name != SOURCE_ID and pa.types.is_floating(stars[name].type):
            numbers = stars[name].to_numpy().astype(np.float64)
            numbers[here] = 3 * numbers[here] + 1
            null = stars[name].is_null().to_numpy()
            if name in ("pmra", "phot_g_mean_flux"):
                null[here[::3]] = True
            values = pa.chunked_array([pa.array(np.nan_to_num(numbers), stars[name].type, mask=null)])
        else:
            continue
        stars = stars.set_column(stars.column_names.index(name), stars.schema.field(name), values)
    return stars


class Seen(NamedTuple):
    """What a step was given, in the order of its calls."""

    batches: list[torch.Tensor]
    validation: list[torch.Tensor]
    pca: list[NDArray[np.float32]]
    prior: list[prior_fitting.Gathered]
    compared: list[pa.Table]


@dataclass
class Made:
    """A run that has been made, and what its steps were given meanwhile."""

    config: Config
    stars: pa.Table
    seen: Seen = field(default_factory=lambda: Seen([], [], [], [], []))
    scored: list[pa.Table] = field(default_factory=list)
    """What the search's candidates are scored on."""

    @property
    def store(self) -> Store:
        return Store(self.config.store)

    @property
    def run(self) -> RunPaths:
        return RunPaths(self.config.name)

    def of(self, part: Part, most: int | None = None) -> pa.Table:
        """The stars of a part, or those of its smallest hashes, in the order of their hashes."""
        table = self.stars.filter(pa.array(part_of(self.stars[SOURCE_ID].to_numpy()) == part))
        return table.take(smallest(hash64(table[SOURCE_ID].to_numpy()), most or len(table)))

    def values(self, part: Part, most: int | None = None) -> NDArray[np.float32]:
        """The network's inputs of these stars."""
        return load_model(self.store, self.run).transform.forward(self.of(part, most)).values

    def coded(self, part: Part) -> NDArray[np.float32]:
        """The same, as training has them: held as codes."""
        transform, stars = load_model(self.store, self.run).transform, self.of(part)
        codec = Codec.fit(transform, statistics_of(self).train, errors=False)
        codes = codec.encode(transform.forward(stars), np.empty((len(stars), 0), np.float32))
        return codec.decoder("cpu")(torch.from_numpy(codes)).values.numpy()


def _make(folder: Path, stars: pa.Table) -> Made:
    folder.mkdir()
    pq.write_table(stars, folder / "stars.parquet")
    made = Made(configuration(folder / "store", folder / "stars.parquet"), stars)
    with pytest.MonkeyPatch.context() as patch:
        _watch(patch, made.seen)
        # What each latent's steps cost is measured on validation stars; but for this they choose, and nothing is fitted to them.
        patch.setattr(rounding, "allocated_bits", lambda precisions, bits, errors=(): [bits // len(precisions)] * len(precisions))
        make_run(made.config, "ingest", "statistics", "train", "encode", "prior", "evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "rate_columns", lambda real, *rest: made.scored.append(real) or rate_columns(real, *rest))
        make_run(made.config, "tune")
    return made


def _watch(patch: pytest.MonkeyPatch, seen: Seen) -> None:
    def noted(module: Any, name: str, note: Callable[..., object]) -> None:
        function = getattr(module, name)

        def watched(*args: Any, **named: Any) -> Any:
            result = function(*args, **named)
            note(result, *args, **named)
            return result

        patch.setattr(module, name, watched)

    stream = TrainBatches.stream

    def watched_stream(self: TrainBatches, *args: Any) -> Iterator[Any]:
        for share in stream(self, *args):
            seen.batches.append(share.stars.values)
            yield share

    patch.setattr(TrainBatches, "stream", watched_stream)
    noted(loop, "read_validation", lambda found, *_, **__: seen.validation.append(found.values))
    noted(gather.Moments, "of", lambda _, values: seen.pca.append(values))
    noted(prior_fitting.Gathered, "join", lambda found, *_: seen.prior.append(found))
    patch.setattr(evaluate, "two_sample_jobs", lambda *_: [])  # of stars that were chosen before, and slow
    noted(evaluate, "rate", lambda _, *__, train, **___: seen.compared.append(train))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Part | None, Made]:
    """The run as it is (None), and with the values of each part's stars changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("parts")
    stars = fetched(small_config("unused", archive={"mock_stars": STARS}))
    made: dict[Part | None, Made] = {None: _make(folder / "plain", stars)}
    for part in Part:
        made[part] = _make(folder / part.name.lower(), poisoned(stars, part))
    return made


def statistics_of(made: Made) -> Statistics:
    return read_statistics(made.store, made.run, Manifest(made.store, made.run).require("statistics").key)


# What must not depend on a part, and what must -------------------------------------------------------------------------------
def tables_of(made: Made, part: Part, *more: Part) -> dict[str, Any]:
    """Latents of the stars of these parts, by source_id and name."""
    record, z = read_catalogue_record(made.store), []
    for tile in record.tiles:
        z.append(catalogue.read_partition(made.store, made.run.latent, tile))
    latents = pa.concat_tables(z)
    latents = latents.filter(pa.array(np.isin(part_of(latents[SOURCE_ID].to_numpy()), (part, *more)))).sort_by(SOURCE_ID)
    return {name: latents[name].to_numpy() for name in latents.column_names}


def arrays(store: Store, name: str) -> dict[str, Any]:
    return safetensors.numpy.load(store.read_bytes(name))


def of_train_stars_alone(made: Made) -> dict[str, dict[str, Any]]:
    """Of a run: what is made from train stars and nothing else."""
    store, run, seen = made.store, made.run, made.seen
    card, model = store.read_json(run.card), load_model(store, run)
    checkpoint = read_checkpoint(store, run.checkpoint)
    assert checkpoint is not None
    return {
        "statistics": {"train": statistics_of(made).train.to_json()},
        "transform": {"transform": model.transform.to_json()},
        "batches": {str(number): batch for number, batch in enumerate(seen.batches)},
        "last weights": {name: tensor.numpy() for name, tensor in checkpoint.network.items()},
        "losses": {"train": [record.train_loss for record in read_metrics(store, run)]},
        "baseline": {"values": np.concatenate(seen.pca)},
        "compared": {name: seen.compared[-1][name].to_pylist() for name in seen.compared[-1].column_names},
        "columns": {"columns": card["columns"]},
        "limits": {"limits": {name: list(limits) for name, limits in load_prior(store, run).limits.items()}},
        "masses": {k: v for k, v in arrays(store, run.prior_weights).items() if k.startswith(("masses", "places"))},
    }


def of_train_and_validation_stars(made: Made) -> dict[str, dict[str, Any]]:
    """Of a run: what test stars may not change."""
    store, run = made.store, made.run
    return of_train_stars_alone(made) | {
        "weights": arrays(store, run.weights),
        "metrics": {"records": [dict(r) | {"seconds": 0, "attempt": ""} for r in read_metrics(store, run)]},
        "latents": tables_of(made, Part.TRAIN, Part.VALIDATION),
        "prior": arrays(store, run.prior_weights),
        "new stars": {"table": sample(load_model(store, run), load_prior(store, run), 200).to_pydict()},
        "scored": {"validation": made.scored[-1].to_pydict()},
        # A candidate's name is a hash of the catalogue too.
        "scores": {
            str(c.options): [r.score for r in c.rungs] for c in store.read_record(run.tuned, SearchRecord).candidates.values()
        },
    }


def differing(one: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Names of what is not the same to the bit."""
    assert one.keys() == other.keys()
    return {
        name
        for name, entries in one.items()
        if entries.keys() != other[name].keys() or not all(np.array_equal(entries[key], other[name][key]) for key in entries)
    }


def test_test_stars_change_nothing_but_the_rating(runs: Mapping[Part | None, Made]) -> None:
    plain, changed = runs[None], runs[Part.TEST]
    assert not differing(of_train_and_validation_stars(plain), of_train_and_validation_stars(changed))
    one, other = (read_rated(made.store, made.run, DR2) for made in (plain, changed))
    assert not one.real.equals(other.real), "or nothing was changed"


def test_validation_stars_choose_and_nothing_is_fitted_to_them(runs: Mapping[Part | None, Made]) -> None:
    plain, changed = runs[None], runs[Part.VALIDATION]
    assert not differing(of_train_stars_alone(plain), of_train_stars_alone(changed))
    one, other = (read_rated(made.store, made.run, DR2) for made in (plain, changed))
    assert one.real.equals(other.real)
    mine, theirs = ([r.validation_loss for r in read_metrics(made.store, made.run)] for made in (plain, changed))
    assert all(a != b for a, b in zip(mine, theirs, strict=True)), "or nothing was changed"


def test_train_stars_are_neither_rated_nor_chosen_by(runs: Mapping[Part | None, Made]) -> None:
    plain, changed = runs[None], runs[Part.TRAIN]
    found = differing(of_train_and_validation_stars(plain), of_train_and_validation_stars(changed))
    assert found == of_train_and_validation_stars(plain).keys() - {"scored"}, (
        "each is made from train stars, and the scored are not"
    )
    one, other = (read_rated(made.store, made.run, DR2) for made in (plain, changed))
    assert one.real.equals(other.real)
    assert not one.rebuilt.equals(other.rebuilt)


# Exactly which stars ------------------------------------------------------------------------------------------------------------
def rows_of(values: Any) -> list[bytes]:
    """Each row as bytes, sorted: which stars there are, whatever their order."""
    return sorted(row.tobytes() for row in np.asarray(values))


@pytest.mark.parametrize("which", [None, *Part])
def test_each_step_sees_all_the_stars_that_it_may_see(runs: Mapping[Part | None, Made], which: Part | None) -> None:
    made = runs[which]
    seen, rated = made.seen, read_rated(made.store, made.run, DR2)
    assert statistics_of(made).train.rows == len(made.of(Part.TRAIN))
    assert statistics_of(made).all.rows == STARS
    # Several passes, of which each leaves out what does not fill a batch.
    assert set(rows_of(torch.cat(seen.batches))) == set(rows_of(made.coded(Part.TRAIN)))
    assert rows_of(seen.validation[0]) == rows_of(made.values(Part.VALIDATION, ROWS))
    assert rows_of(np.concatenate(seen.pca)) == rows_of(made.values(Part.TRAIN))
    gathered = seen.prior[-1]
    assert gathered.counts.stars.sum() == len(made.of(Part.TRAIN))
    for stars, part, most in ((gathered.train, Part.TRAIN, 2_000), (gathered.validation, Part.VALIDATION, ROWS)):
        assert stars.hashes.tolist() == hash64(made.of(part, most)[SOURCE_ID].to_numpy()).tolist()
        assert np.array_equal(stars.values, made.values(part, most))
    assert sorted(rated.real[SOURCE_ID].to_pylist()) == sorted(made.of(Part.TEST, ROWS)[SOURCE_ID].to_pylist())
    assert sorted(made.scored[-1][SOURCE_ID].to_pylist()) == sorted(made.of(Part.VALIDATION, ROWS)[SOURCE_ID].to_pylist())
    assert sorted(seen.compared[-1]["ra"].to_pylist()) == sorted(made.of(Part.TRAIN)["ra"].to_pylist())
