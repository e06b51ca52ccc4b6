"""Every file and folder name of a store, relative to the store's root and with forward slashes."""

from __future__ import annotations

from dataclasses import dataclass

CATALOGUE = "catalogue"
RUNS = "runs"
LEASE = "lease.json"


@dataclass(frozen=True, order=True, slots=True)
class Tile:
    """A HEALPix pixel (nested) and, where stars lie in it, a partition of a catalogue."""

    order: int
    pixel: int

    def __str__(self) -> str:
        return f"Norder={self.order}/Npix={self.pixel}"

    @property
    def file(self) -> str:
        """Path of the partition file below a catalogue's folder, by the HATS rule."""
        return f"dataset/Norder={self.order}/Dir={self.pixel // 10_000 * 10_000}/Npix={self.pixel}.parquet"

    @property
    def flat_name(self) -> str:
        return f"{self.order}-{self.pixel}"

    @property
    def source_ids(self) -> tuple[int, int]:
        """Half-open range of the source_ids whose HEALPix part (source_id >> 35, order 12) lies in this tile."""
        width = 1 << (35 + 2 * (12 - self.order))
        return self.pixel * width, (self.pixel + 1) * width

    @property
    def healpix_29(self) -> tuple[int, int]:
        """Half-open range of `_healpix_29` of the positions in this tile."""
        width = 1 << (2 * (29 - self.order))
        return self.pixel * width, (self.pixel + 1) * width


HATS_MARKER = "hats.properties"

# Ingest -------------------------------------------------------------------------------------------------------------
INGEST = f"{CATALOGUE}/_ingest"
SELECTION = f"{INGEST}/selection.json"
PLAN = f"{INGEST}/plan.json"
LEDGER = f"{INGEST}/ledger"
PARTS = f"{INGEST}/parts"
TILES = f"{INGEST}/tiles"
PUBLISHED = f"{INGEST}/catalogue.json"
INGEST_LEASE = f"{INGEST}/{LEASE}"

# The catalogue's margin, and the file by which readers that open the store find both.
MARGIN = "margin"
MARGIN_STRIPS = f"{MARGIN}/_strips"
MARGIN_RECORD = f"{MARGIN}/_margin.json"
COLLECTION = "collection.properties"


def chunk_record(chunk: str) -> str:
    return f"{LEDGER}/{chunk}.json"


def part(chunk: str, name: str) -> str:
    return f"{PARTS}/{chunk}/{name}.parquet"


def tile_record(tile: Tile) -> str:
    return f"{TILES}/{tile.flat_name}.json"


# Runs ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class RunPaths:
    """Names of one run's files, relative to the store."""

    name: str

    @property
    def root(self) -> str:
        return f"{RUNS}/{self.name}"

    @property
    def config(self) -> str:
        return f"{self.root}/config.toml"

    @property
    def manifest(self) -> str:
        return f"{self.root}/manifest.json"

    @property
    def statistics(self) -> str:
        return f"{self.root}/statistics.json"

    @property
    def model(self) -> str:
        return f"{self.root}/model"

    @property
    def weights(self) -> str:
        return f"{self.model}/weights.safetensors"

    @property
    def card(self) -> str:
        return f"{self.model}/card.json"

    @property
    def validation(self) -> str:
        """The validation stars that training is rated on."""
        return f"{self.root}/validation.parquet"

    @property
    def checkpoints(self) -> str:
        return f"{self.root}/checkpoints"

    @property
    def checkpoint(self) -> str:
        return f"{self.checkpoints}/last.safetensors"

    @property
    def metrics(self) -> str:
        return f"{self.root}/metrics.jsonl"

    @property
    def tensorboard(self) -> str:
        return f"{self.root}/tensorboard"

    @property
    def tuned(self) -> str:
        """Record of an architecture search."""
        return f"{self.root}/tune.json"

    @property
    def tuning(self) -> str:
        """Folder of the search's candidates, and of the stars that they are rated and scored on."""
        return f"{self.root}/tune"

    @property
    def tuning_validation(self) -> str:
        """The validation stars that candidates are rated and scored on."""
        return f"{self.tuning}/validation.parquet"

    def candidate(self, name: str) -> RunPaths:
        """The files of one candidate: those of a run, within this one."""
        return RunPaths(f"{self.name}/tune/{name}")

    @property
    def latent(self) -> str:
        return f"{self.root}/latent"

    @property
    def extension(self) -> str:
        """Folder of the catalogue's extension."""
        return f"{self.root}/extension"

    @property
    def extension_properties(self) -> str:
        """The file by which the extension is joined to the catalogue, named after it as HATS asks."""
        return f"{self.root}/{self.name}.properties"

    @property
    def prior(self) -> str:
        return f"{self.root}/prior"

    @property
    def prior_weights(self) -> str:
        return f"{self.prior}/weights.safetensors"

    @property
    def prior_card(self) -> str:
        return f"{self.prior}/card.json"

    @property
    def prior_stars(self) -> str:
        """The stars that a prior is fitted to, while it is."""
        return f"{self.prior}/stars.safetensors"

    def prior_checkpoint(self, density: str) -> str:
        return f"{self.prior}/{density}.checkpoint.safetensors"

    @property
    def compressed(self) -> str:
        """Folder of the compressed catalogue, complete by itself."""
        return f"{self.root}/compressed"

    @property
    def samples(self) -> str:
        """Folder of new stars."""
        return f"{self.root}/samples"

    @property
    def more_samples(self) -> str:
        """Folder of folders of new stars: of further requests."""
        return f"{self.root}/more_samples"

    @property
    def quality(self) -> str:
        return f"{self.root}/quality.json"

    @property
    def rated(self) -> str:
        """Folder of the stars that quality.json rates: test stars real, rebuilt, by the baseline, their latents; new stars."""
        return f"{self.root}/rated"

    @property
    def report(self) -> str:
        return f"{self.root}/report.html"

    @property
    def lease(self) -> str:
        return f"{self.root}/{LEASE}"
