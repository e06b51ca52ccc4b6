"""A store that is started, killed, gone on with, replaced and asked for by others in any order holds the stars that it is to hold."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from every_operation import Bench
from faulty_store import MODES, Death, starting
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from gaiadask import catalogue, ingest
from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.errors import GaiadaskError, KeyMismatchError, StoreHeldError
from gaiadask.stages.engine import run_stages
from gaiadask.store import paths
from gaiadask.store.files import Store
from gaiadask.store.lease import Lease
from gaiadask.store.manifest import Manifest
from gaiadask.store.paths import RunPaths

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

STAGES = ["ingest", "statistics"]
SELECTIONS = ("", "dec > 0")


class Starts(RuleBasedStateMachine):
    """One store and the runs that are started on it, of one selection or another."""

    bench: Bench

    @initialize()
    def empty(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gaiadask-starts-"))
        self.held_by: str | None = None  # the selection of the last catalogue that was made whole

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def config(self, selection: str, run: str = "r") -> Config:
        config = self.bench.config
        where = config.selection.model_copy(update={"where": selection})
        return config.model_copy(update={"store": str(self.folder / "store"), "selection": where, "name": run})

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "store"))

    @rule(selection=st.sampled_from(SELECTIONS), run=st.sampled_from(["r", "other"]))
    def start(self, selection: str, run: str) -> None:
        """A run is started, or gone on with: whole in the end, or refused because the store, or the run, has other stars."""
        with starting():
            try:
                run_stages(self.config(selection, run), STAGES, workers=Here())
            except KeyMismatchError:
                assert self.held_by != selection or self.stars_of(run) != selection
                return
        self.holds(selection)

    @rule(selection=st.sampled_from(SELECTIONS), mode=st.sampled_from(list(MODES)), number=st.integers(0, 300))
    def start_and_fail(self, selection: str, mode: str, number: int) -> None:
        """A run is started, and an operation fails or kills it."""
        with starting(MODES[mode], number):
            try:
                run_stages(self.config(selection), STAGES, workers=Here())
            except (GaiadaskError, Death):
                return
        self.holds(selection)

    @rule(selection=st.sampled_from(SELECTIONS))
    def replace(self, selection: str) -> None:
        with starting():
            run_stages(self.config(selection), STAGES, replacing=["ingest"], workers=Here())
        self.holds(selection)

    @rule(selection=st.sampled_from(SELECTIONS), number=st.integers(0, 300), mode=st.sampled_from(["dead before", "dead after"]))
    def replace_and_die(self, selection: str, number: int, mode: str) -> None:
        with starting(MODES[mode], number):
            try:
                run_stages(self.config(selection), STAGES, replacing=["ingest"], workers=Here())
            except Death:
                self.held_by = None  # the old catalogue's, nobody's, or the new one's
                return
        self.holds(selection)

    @precondition(lambda self: self.store.list(""))
    @rule(selection=st.sampled_from(SELECTIONS), lease=st.sampled_from([RunPaths("r").lease, paths.INGEST_LEASE]))
    def second_writer(self, selection: str, lease: str) -> None:
        """Another process works on the store: whoever is refused has changed nothing."""
        with starting(), Lease(self.store, lease):
            before = self.files()
            try:
                run_stages(self.config(selection), STAGES, replacing=["ingest"], workers=Here())
            except StoreHeldError:
                assert self.files() == before
            else:
                raise AssertionError("two writers at once")

    def stars_of(self, run: str) -> object:
        """The selection of the stars that a run was made with."""
        entry = Manifest(self.store, RunPaths(run)).require("ingest")
        return entry.inputs["selection"]["archive"]["where"]  # type: ignore[call-overload,index]

    def files(self) -> dict[str, bytes]:
        names = [name for name in self.store.list("") if "lease.json" not in name]
        return {name: self.store.read_bytes(name) for name in names}

    def holds(self, selection: str) -> None:
        """The store's catalogue is that selection's, whole, and the run's statistics are of it."""
        self.held_by = selection
        record = ingest.read_catalogue_record(self.store)
        assert record.selection.archive.to_json()["where"] == selection
        assert record.id == UNDISTURBED[selection]

    @invariant()
    def what_is_published_is_whole(self) -> None:
        """Whenever a reader comes, a catalogue that is published has the rows of its record."""
        if not hasattr(self, "folder") or not catalogue.is_published(self.store, paths.CATALOGUE):
            return
        record = ingest.read_catalogue_record(self.store)
        rows = [catalogue.read_partition(self.store, paths.CATALOGUE, tile).num_rows for tile in record.tiles]
        assert rows == [partition.rows for partition in record.partitions]
        assert record.id in UNDISTURBED.values()


UNDISTURBED: dict[str, str] = {}
"""Ids of the catalogues of each selection, made without a fault."""


def test_any_order_of_starts_ends_well(tmp_path: Path) -> None:
    Starts.bench = Bench(tmp_path)
    for selection in SELECTIONS:
        folder = tmp_path / f"undisturbed-{len(selection)}"
        config = Starts.bench.config
        where = config.selection.model_copy(update={"where": selection})
        run_stages(config.model_copy(update={"store": str(folder), "selection": where}), STAGES, workers=Here())
        UNDISTURBED[selection] = ingest.read_catalogue_record(Store(str(folder))).id
    assert len(set(UNDISTURBED.values())) == len(SELECTIONS)
    run_state_machine_as_test(
        Starts,
        settings=settings(
            max_examples=12, stateful_step_count=8, deadline=None, derandomize=True, database=None,
            phases=(Phase.generate,), suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
