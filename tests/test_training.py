"""One rank: it learns, leaves records, goes on after a kill, and ends with whoever started it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_up import FREE, VALIDATION, fitted, made_up_stars, write_partitions
from small_run import fetched, small_config

from gaiadask.config.model import ModelConfig
from gaiadask.config.sections import Config, TrainingConfig
from gaiadask.decode import decode
from gaiadask.encode import encode
from gaiadask.errors import ConfigurationError, DataError, MissingFileError, StoreError, TrainingError
from gaiadask.inputs.statistics import Statistics
from gaiadask.inputs.transform import PositionMode, Transform
from gaiadask.model import StarModel, load_model
from gaiadask.quality.reconstruction import rate_columns
from gaiadask.release.dr2 import DR2, SEED16, SEED25
from gaiadask.split import Part, part_of
from gaiadask.store.files import Store
from gaiadask.store.paths import RunPaths
from gaiadask.training import loop
from gaiadask.training.assignment import Assignment, read_assignment
from gaiadask.training.checkpoint import read_checkpoint
from gaiadask.training.codes import Codec
from gaiadask.training.events import Done, RankEvent, Saved, Validated, parse_event
from gaiadask.training.group import OneRank
from gaiadask.training.loop import train
from gaiadask.training.metrics import read_metrics, write_metrics
from gaiadask.training.objective import Objective, validate
from gaiadask.training.process import ORPHAN_EXIT, set_threads
from gaiadask.training.validation import read_validation

RUN = RunPaths("r")
TABLE = made_up_stars(4_000, nulls=0.1)
TRANSFORM = fitted(TABLE)
STATISTICS = Statistics.from_table(TABLE, DR2)
MODEL = ModelConfig(latents=4, hidden=(16, 16))
TRAINING = TrainingConfig(rows_seen=12_000, validate_every_rows=3_000, batch_rows=250, validation_rows=200, learning_rate=0.01)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    write_partitions(store, TABLE)
    return store


def assignment(store: Store, **changes: Any) -> Assignment:
    given: dict[str, Any] = {
        "store": store.uri,
        "run": RUN.name,
        "partitions": tuple(store.list("catalogue")),
        "validation": VALIDATION,
        "transform": TRANSFORM.to_json(),
        "model": MODEL,
        "training": TRAINING,
        "key": "k1",
        "attempt": "a1",
    }
    given |= changes
    if "codec" not in given:
        transform, errors = Transform.from_json(given["transform"]), given["model"].error_share > 0
        given["codec"] = Codec.fit(transform, STATISTICS.train, errors=errors).to_json()
    return Assignment(**given)


def trained(store: Store, **changes: Any) -> tuple[StarModel, list[RankEvent]]:
    events: list[RankEvent] = []
    model = train(assignment(store, **changes), events.append)
    assert model is not None
    return model, events


class Interrupted(Exception):
    """A kill, as far as an in-process rank can be killed."""


def validations(events: list[RankEvent]) -> list[Validated]:
    return [event for event in events if isinstance(event, Validated)]


def interrupt(store: Store, after: int, **changes: Any) -> None:
    left = after

    def report(event: RankEvent) -> None:
        nonlocal left
        left -= isinstance(event, Validated)
        if not left:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(assignment(store, **changes), report)


@pytest.mark.slow
def test_a_rank_leaves_a_model_its_records_and_tells_of_them(store: Store) -> None:
    model, events = trained(store, metadata={"catalogue_id": "c"})
    validated = validations(events)
    assert [event.rows_seen for event in validated] == [0, 3_000, 6_000, 9_000, 12_000]
    assert isinstance(events[-1], Done)
    assert [parse_event(json.dumps(event.to_json())) for event in events] == events

    records = read_metrics(store, RUN)
    assert [dict(record) for record in records] == [{k: v for k, v in dict(event).items() if k != "event"} for event in validated]
    best = min(records, key=lambda record: record.validation_loss)
    assert best.validation_loss < 0.9 * records[0].validation_loss
    assert set(best.median_error) == set(FREE)
    assert best.validation_loss == pytest.approx(best.validation_reconstruction + best.validation_kl, rel=1e-4)

    loaded = load_model(store, RUN)
    assert loaded.card.metrics.rows_seen == best.rows_seen == loaded.card.training.best_rows_seen
    assert loaded.card.metadata == {"catalogue_id": "c"}
    assert [latent.kl for latent in loaded.card.latents] == [latent.kl for latent in best.latents]
    inputs = TRANSFORM.forward(TABLE)
    np.testing.assert_array_equal(loaded.encode(inputs), model.encode(inputs))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "position"),
    [
        (ModelConfig(preset="autoencoder", latents=4, hidden=(16,)), "condition"),
        (ModelConfig(latents=12, hidden=(16,), position="input", free_bits=0.2), "input"),
        (ModelConfig(preset="keras-2020"), "degrees"),
        (ModelConfig(preset="pytorch-2020"), "degrees"),
        (
            ModelConfig(
                preset="autoencoder", loss="weighted-mse", scaling="min-max", column_weights={"pmra": 2.0}, linear_path=False
            ),
            "condition",
        ),
    ],
)
def test_other_kinds_of_model_train_too(store: Store, model: ModelConfig, position: PositionMode) -> None:
    transform = Transform.fit(SEED16, STATISTICS.train, DR2, position, model.scaling, model.derive)
    training = Config(model=model, training=TRAINING.model_dump(exclude={"learning_rate"})).training  # type: ignore[arg-type]
    loaded, events = trained(store, model=model, transform=transform.to_json(), training=training)
    first, *_, last = validations(events)
    assert last.validation_loss < first.validation_loss
    assert set(last.median_error) == set(transform.value_names)
    assert (last.validation_kl == 0) == (model.preset != "vae")
    inputs = transform.forward(TABLE)
    again = load_model(store, RUN)
    z = again.encode(inputs)
    np.testing.assert_array_equal(z, loaded.encode(inputs))
    np.testing.assert_array_equal(again.decode(z, inputs.condition), loaded.decode(z, inputs.condition))


@pytest.mark.slow
def test_a_stars_own_error_frees_its_value_and_nothing_else(store: Store, tmp_path: Path) -> None:
    """A catalogue without errors trains as with the floor alone; large errors of one column let that one go."""
    freed = MODEL.model_copy(update={"error_share": 1.0})
    fixed, _ = trained(store)
    without, _ = trained(store, model=freed, key="k2")
    assert without.card.weights_sha256 == fixed.card.weights_sha256
    other = Store(str(tmp_path / "errors"))
    write_partitions(other, TABLE.append_column("pmra_error", pa.array(np.full(TABLE.num_rows, 50.0))))
    model, _ = trained(other, model=freed)
    found, expected = (m.card.metrics.median_error for m in (model, fixed))
    assert found["pmra"] > 1.5 * expected["pmra"]
    assert np.mean([found[n] for n in FREE if n != "pmra"]) < np.mean([expected[n] for n in FREE if n != "pmra"])
    inputs = TRANSFORM.forward(TABLE)  # needs no error column
    assert np.isfinite(model.encode(inputs)).all()


@pytest.mark.slow
def test_test_stars_are_never_looked_at(tmp_path: Path) -> None:
    """Every number of every test star is NaN, and nobody minds."""
    test = part_of(TABLE["source_id"].to_numpy()) == Part.TEST
    poisoned = TABLE
    for name in FREE:
        dtype = TABLE.schema.field(name).type
        numbers = pa.array(np.where(test, np.nan, TABLE[name].to_numpy()), dtype, mask=TABLE[name].is_null().to_numpy() & ~test)
        poisoned = poisoned.set_column(poisoned.column_names.index(name), name, numbers)
    clean, dirty = Store(str(tmp_path / "clean")), Store(str(tmp_path / "dirty"))
    write_partitions(clean, TABLE)
    write_partitions(dirty, poisoned)
    assert trained(dirty)[0].card.weights_sha256 == trained(clean)[0].card.weights_sha256


# Going on ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_an_interrupted_rank_ends_where_an_unbroken_one_does(store: Store, tmp_path: Path) -> None:
    other = Store(str(tmp_path / "other"))
    write_partitions(other, TABLE)
    interrupt(store, 3)
    resumed, events = trained(store, attempt="a2")
    unbroken, _ = trained(other)
    assert resumed.card.weights_sha256 == unbroken.card.weights_sha256
    records = read_metrics(store, RUN)
    assert [r.rows_seen for r in records] == [0, 3_000, 6_000, 9_000, 12_000]
    assert [(r.attempt, r.resumed_from_rows) for r in records] == [("a1", 0)] * 3 + [("a2", 6_000)] * 2
    assert [r.validation_loss for r in records] == [r.validation_loss for r in read_metrics(other, RUN)]
    assert [event.rows_seen for event in validations(events)] == [9_000, 12_000]


@pytest.mark.slow
def test_a_rank_goes_on_between_two_validations(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved by time, so that what is killed before its next validation does not begin at the last one for ever."""
    other = Store(str(tmp_path / "other"))
    write_partitions(other, TABLE)
    unbroken, _ = trained(other)
    monkeypatch.setattr(loop, "SAVE_S", 0.0)
    monkeypatch.setattr(loop, "_SAVING_SHARE", math.inf)

    def report(event: RankEvent) -> None:
        if isinstance(event, Saved) and event.rows_seen > 4_000:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(assignment(store), report)
    saved = read_checkpoint(store, RUN.checkpoint)
    assert saved is not None and 4_000 < saved.state["rows_seen"] < 6_000
    monkeypatch.undo()
    resumed, _ = trained(store, attempt="a2")
    assert resumed.card.weights_sha256 == unbroken.card.weights_sha256
    ended, expected = read_metrics(store, RUN), read_metrics(other, RUN)
    assert [(r.rows_seen, r.validation_loss) for r in ended] == [(r.rows_seen, r.validation_loss) for r in expected]
    assert [r.train_loss for r in ended[1:]] == pytest.approx([r.train_loss for r in expected[1:]], rel=1e-9)
    assert [r.resumed_from_rows for r in ended] == [0, 0, *[saved.state["rows_seen"]] * 3]


@pytest.mark.slow
def test_records_beyond_the_checkpoint_are_dropped(store: Store) -> None:
    interrupt(store, 2)
    records = read_metrics(store, RUN)
    write_metrics(store, RUN, [*records, records[-1].model_copy(update={"rows_seen": 5_999, "attempt": "lost"})])
    trained(store)
    assert [r.rows_seen for r in read_metrics(store, RUN)] == [0, 3_000, 6_000, 9_000, 12_000]


@pytest.mark.slow
def test_a_finished_rank_that_is_run_again_only_saves(store: Store) -> None:
    first, _ = trained(store)
    store.remove(RUN.model)
    again, events = trained(store)
    assert [event.event for event in events] == ["done"]
    assert again.card.weights_sha256 == first.card.weights_sha256


@pytest.mark.slow
def test_a_checkpoint_of_another_key_is_ignored(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    interrupt(store, 3)
    with caplog.at_level("INFO", logger="gaiadask"):
        model, _ = trained(store, key="k2", model=MODEL.model_copy(update={"latents": 3}))
    assert "another key (k1)" in caplog.text
    assert model.latents == 3
    assert all(record.resumed_from_rows == 0 for record in read_metrics(store, RUN))
    saved = read_checkpoint(store, RUN.checkpoint)
    assert saved is not None
    assert saved.state["key"] == "k2"


def test_a_damaged_checkpoint_is_named(store: Store) -> None:
    interrupt(store, 2)
    store.write_bytes(RUN.checkpoint, store.read_bytes(RUN.checkpoint)[:-100])
    with pytest.raises(StoreError, match=r"last.safetensors is damaged"):
        trained(store)


# Stopping ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_patience_ends_training_and_the_best_is_kept(store: Store) -> None:
    training = TRAINING.model_copy(update={"learning_rate": 3.0, "patience": 2, "kl_warmup": 0.25})
    model, events = trained(store, training=training)
    summary = model.card.training
    assert summary.stopped_early
    # Patience counts only after the warm-up, which ends with the first validation.
    assert summary.rows_seen == 9_000
    assert summary.best_rows_seen == model.card.metrics.rows_seen == 0
    assert isinstance(events[-1], Done) and events[-1].rows_seen == 9_000


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_the_model_that_is_saved_has_the_weights_of_the_best_validation(store: Store, killed: bool) -> None:
    """Also where the best was before a kill: later ones are worse."""
    changes = {"training": TRAINING.model_copy(update={"learning_rate": 3.0, "patience": 9})}
    if killed:
        interrupt(store, 3, **changes)
    model, _ = trained(store, **changes)
    losses = [record.validation_loss for record in read_metrics(store, RUN)]
    assert min(losses[:3]) < 0.9 * losses[-1], "or the last is the best"
    objective = Objective.of(MODEL, TRANSFORM, torch.device("cpu"))
    for network in (model.network, load_model(store, RUN).network):
        stars = read_validation(store, VALIDATION, TRANSFORM, TRAINING.validation_rows)
        rated = validate(network, stars, objective, MODEL.kl_weight, OneRank())
        assert rated.loss == pytest.approx(min(losses), rel=1e-6)
    assert model.card.metrics.validation_loss == min(losses)


def test_a_loss_that_is_not_finite_says_where_and_what_to_try(store: Store) -> None:
    training = TRAINING.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"at \d+ rows seen.*lower training.learning_rate \(now 1e\+30\)"):
        trained(store, training=training)
    assert not store.exists(RUN.card)
    saved = read_checkpoint(store, RUN.checkpoint)
    assert saved is not None
    assert saved.state["rows_seen"] == 0
    assert all(tensor.isfinite().all() for tensor in saved.network.values())


def test_too_few_stars_are_said(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_partitions(store, TABLE.filter(pa.array(part_of(TABLE["source_id"].to_numpy()) == Part.VALIDATION)), files=1)
    with pytest.raises(DataError, match="no train star"):
        trained(store)


def test_a_device_that_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(ConfigurationError, match="device is 'abacus': expected 'auto', 'cpu'"):
        trained(store, device="abacus")


@pytest.mark.slow
def test_a_partition_that_vanishes_midway_is_named_and_the_checkpoint_kept(store: Store) -> None:
    def report(event: RankEvent) -> None:
        if isinstance(event, Validated) and event.rows_seen:
            store.remove(store.list("catalogue")[0])

    training = TRAINING.model_copy(update={"rows_seen": 10**9, "buffer_rows": 500})
    with pytest.raises(
        MissingFileError, match=r"catalogue/dataset/\d\.parquet: no such file: restore it, or .*`gaiadask ingest CONFIG`"
    ):
        train(assignment(store, training=training), report)
    saved = read_checkpoint(store, RUN.checkpoint)
    assert saved is not None and saved.state["rows_seen"] >= 3_000


@pytest.mark.parametrize("buffer_rows", [500, 10_000_000])
def test_a_partition_with_other_rows_than_were_written_is_named(store: Store, buffer_rows: int) -> None:
    """Held or streamed: nothing is trained on what is left."""
    rows = tuple(pq.read_metadata(store.path(name)).num_rows for name in store.list("catalogue"))
    given = assignment(store, training=TRAINING.model_copy(update={"buffer_rows": buffer_rows}), partition_rows=rows)
    name = given.partitions[0]
    file = Path(store.path(name))
    pq.write_table(pq.read_table(file).slice(0, 7), file)
    with pytest.raises(DataError, match=rf"{name} has 7 rows, "):
        train(given, lambda _: None)


def test_a_gpu_without_enough_memory_says_what_to_lower(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(loop, "step", step)
    says = r"rank 0: the GPU has not enough memory \(CUDA out of memory.*training\.buffer_rows \(now 10000000\) or training\.batch_rows \(now 250\)"
    with pytest.raises(TrainingError, match=says):
        trained(store)
    assert store.exists(RUN.checkpoint)


# The assignment ------------------------------------------------------------------------------------------------------
def test_an_assignment_travels_as_json(store: Store) -> None:
    given = assignment(store, metadata={"catalogue_id": "c", "catalogue_rows": 3})
    assert read_assignment(json.dumps(given.to_json())) == given


@pytest.mark.parametrize(
    ("line", "says"),
    [("", "line: Invalid JSON"), ("{}", "store: Field required"), ('{"epochs": 3}', "epochs: Extra inputs"), ("[1]", "line: ")],
)
def test_a_line_that_is_no_assignment_is_explained(line: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        read_assignment(line)


# The process ---------------------------------------------------------------------------------------------------------
COMMAND = [sys.executable, "-m", "gaiadask.training.process"]


def start(given: Assignment) -> subprocess.Popen[str]:
    rank = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert rank.stdin is not None
    rank.stdin.write(given.model_dump_json() + "\n")
    rank.stdin.flush()
    return rank


def read_until(rank: subprocess.Popen[str], enough: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    assert rank.stdout is not None
    events = []
    for line in rank.stdout:
        event = json.loads(line)
        if event["event"] == "alive":
            continue
        events.append(event)
        if enough(event):
            break
    return events


def end(rank: subprocess.Popen[str]) -> int:
    with rank:
        return rank.wait(timeout=30)


LONG = TRAINING.model_copy(update={"rows_seen": 10**9, "validate_every_rows": 20_000, "patience": 10**6})


@pytest.mark.slow
def test_a_killed_rank_goes_on(store: Store) -> None:
    training = TRAINING.model_copy(update={"rows_seen": 240_000, "validate_every_rows": 20_000})
    rank = start(assignment(store, training=training))
    read_until(rank, lambda event: event["rows_seen"] >= 40_000)
    rank.kill()
    assert end(rank) == -signal.SIGKILL

    rank = start(assignment(store, training=training, attempt="a2"))
    events = read_until(rank, lambda event: event["event"] in ("done", "error"))
    assert events[-1]["event"] == "done", events[-1]
    assert end(rank) == 0
    assert min(event["rows_seen"] for event in events) > 20_000
    records = read_metrics(store, RUN)
    rows_seen = [record.rows_seen for record in records]
    assert rows_seen == sorted(set(rows_seen)) == [0, *range(20_000, 240_001, 20_000)]
    assert {record.attempt for record in records} == {"a1", "a2"}
    assert load_model(store, RUN).card.training.rows_seen == 240_000


@pytest.mark.slow
def test_a_rank_ends_when_its_parent_is_killed(store: Store) -> None:
    """The parent holds the rank's stdin; when it is killed, the kernel closes that."""
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys\n"
         "rank = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE)\n"
         "rank.stdin.write(sys.argv[1].encode() + b'\\n'); rank.stdin.flush()\n"
         "print(rank.pid, flush=True); rank.wait()", assignment(store, training=LONG).model_dump_json(), *COMMAND],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    read_until(parent, lambda event: event["event"] == "progress")
    assert is_running(pid)
    parent.kill()
    end(parent)
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline, "the rank outlived its parent"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        # A child whose parent died and that nobody waits for stays as a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_closing_stdin_ends_a_rank(store: Store) -> None:
    rank = start(assignment(store, training=LONG))
    read_until(rank, lambda event: event["event"] == "progress")
    assert rank.stdin is not None
    rank.stdin.close()
    assert end(rank) == ORPHAN_EXIT
    assert read_metrics(store, RUN)[0].rows_seen == 0


@pytest.mark.slow
def test_a_failing_rank_says_why_on_stdout(store: Store) -> None:
    rank = start(assignment(store, partitions=("catalogue/nowhere.parquet",)))
    [event] = read_until(rank, lambda event: True)
    assert end(rank) == 1
    assert event["type"] == "MissingFileError"
    assert "nowhere.parquet: no such file" in event["message"]
    done = subprocess.run(COMMAND, input="nonsense\n", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["type"] == "ConfigurationError"


# Learning ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_it_learns_what_pca_cannot(tmp_path: Path) -> None:
    """With six latents, the median error of the nine values is well below PCA's, in the mean and in the worst column."""
    table = made_up_stars(30_000, seed=5)
    transform = fitted(table)
    store = Store(str(tmp_path))
    names = write_partitions(store, table)
    training = TrainingConfig(rows_seen=500_000, validate_every_rows=250_000, batch_rows=1_024, validation_rows=1_000)
    model, _ = trained(
        store, partitions=tuple(names), transform=transform.to_json(), training=training,
        model=ModelConfig(latents=6, hidden=(128, 128)),
    )  # fmt: skip
    part = part_of(table["source_id"].to_numpy())
    fit = transform.forward(table.filter(pa.array(part == Part.TRAIN))).values
    test = transform.forward(table.filter(pa.array(part == Part.TEST)))
    axes = np.linalg.svd(fit - fit.mean(0), full_matrices=False)[2][:6]
    by_pca = np.median(np.abs(test.values - fit.mean(0) - (test.values - fit.mean(0)) @ axes.T @ axes), axis=0)
    by_model = np.median(np.abs(model.decode(model.encode(test), test.condition) - test.values), axis=0)
    assert by_model.mean() < 0.7 * by_pca.mean()
    assert by_model.max() < 0.6 * by_pca.max()


def test_a_cluster_worker_does_not_set_the_threads(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))
    for threads, ranks, expected in ((0, 1, 8), (0, 2, 4), (0, 100, 1), (3, 2, 3)):
        set_threads(assignment(store, training=TRAINING.model_copy(update={"threads": threads}), ranks_on_host=ranks))
        assert torch.get_num_threads() == expected


@pytest.mark.slow
def test_twenty_five_columns_with_nulls(tmp_path: Path) -> None:
    """The nine errors too, blocks of the archive missing: marginals are kept, what is null stays null.

    By a network of two small layers in some seconds, so the bounds are three to five times what it reaches.
    """
    table = fetched(small_config(tmp_path / "unused", archive={"mock_stars": 20_000}))
    statistics = Statistics.from_table(table, DR2).train
    transform = Transform.fit(SEED25, statistics, DR2, "condition")
    assert len(transform.null_groups) >= 5
    store = Store(str(tmp_path / "store"))
    names = write_partitions(store, table)
    training = TrainingConfig(rows_seen=300_000, validate_every_rows=100_000, batch_rows=512, validation_rows=1_000)
    model, _ = trained(
        store, partitions=tuple(names), transform=transform.to_json(), training=training,
        codec=Codec.fit(transform, statistics, errors=True).to_json(), model=ModelConfig(columns="seed25", latents=16, hidden=(64, 64)),
    )  # fmt: skip
    real = table.filter(pa.array(part_of(table["source_id"].to_numpy()) == Part.TEST))
    rebuilt = decode(encode(real, model), model)
    for name, rating in rate_columns(real, rebuilt, SEED25, DR2).items():
        assert rating.ks < 0.1, name
        assert rating.invented == 0, name
        assert rating.lost == 0 or rating.derived, name
        assert rating.error_over_iqr.median < 0.2, name
