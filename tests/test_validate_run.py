"""`gaiadask validate` finds what is wrong with the files that a run made: latents, stars in folders, the compressed catalogue."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import copied
from test_linear import Elsewhere

from gaiadask.cluster.here import Here
from gaiadask.config.sections import Config
from gaiadask.stages.decode import DecodeOptions
from gaiadask.stages.engine import run_stages
from gaiadask.stages.sample import SampleOptions
from gaiadask.stages.validation import Validated, validate_run

pytestmark = pytest.mark.slow

LATENT, COMPRESSED = "runs/small/latent/dataset/**/*.parquet", "runs/small/compressed/dataset/**/*.parquet"
SAMPLES, REBUILT = "runs/small/samples/*.parquet", "rebuilt/*.parquet"


@pytest.fixture(scope="module")
def whole(small_run: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with everything that can be validated; its rebuilt stars lie within the store's folder."""
    config = copied(small_run, tmp_path_factory.mktemp("whole") / "store")
    rebuilt = DecodeOptions(output=f"{config.store}/rebuilt")
    for stage, request in (("compress", None), ("sample", SampleOptions(stars=2_000)), ("decode", rebuilt)):
        run_stages(config, [stage], request=request, workers=Here())
    return config


@pytest.fixture
def changed(whole: Config, tmp_path: Path) -> Config:
    """A copy of it, to be damaged."""
    config = copied(whole, tmp_path / "store")
    manifest = tmp_path / "store" / "runs" / "small" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f"{whole.store}/rebuilt", f"{config.store}/rebuilt"))
    return config


def validated(config: Config, quick: bool = False) -> Validated:
    return validate_run(config, quick, workers=Here())


def test_files_are_read_by_workers(changed: Config) -> None:
    """Each that has stars, whatever made it, with all its row groups."""
    config = changed.model_copy(update={"catalogue": changed.catalogue.model_copy(update={"margin_arcsec": 30.0})})
    run_stages(config, ["ingest"], workers=Here())
    workers = Elsewhere()
    with workers.counting():
        assert not validate_run(config, quick=False, workers=workers).findings
    assert workers.rows_read == 0


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("quick", [True, False])
def test_a_whole_run_has_no_findings_and_everything_was_looked_at(whole: Config, quick: bool) -> None:
    found = validated(whole, quick)
    assert found.findings == []
    assert {name.split()[0] for name in found.products} == {"encode", "compress", "sample", "decode"}


@pytest.mark.parametrize(
    ("pattern", "where"),
    [(LATENT, "latents"), (COMPRESSED, "compressed partition"), (SAMPLES, "new stars in"), (REBUILT, "rebuilt stars in")],
)
def test_what_is_damaged_is_named(changed: Config, pattern: str, where: str) -> None:
    file = max(Path(changed.store).glob(pattern), key=lambda path: path.stat().st_size)
    harms: tuple[Callable[[Path], None], ...] = (flip, cut, Path.unlink)
    for harm in harms:
        harm(file)
        findings = validated(changed).findings
        assert findings, harm
        assert all(finding.where.startswith(where) for finding in findings), (harm, findings)


def test_latents_of_other_stars_are_named(changed: Config) -> None:
    one, other = sorted(Path(changed.store).glob(LATENT))[:2]
    shutil.copy(other, one)
    assert "latents" in validated(changed).findings[0].where


def test_a_run_that_made_nothing_yet_has_its_catalogue_looked_at(whole: Config) -> None:
    found = validated(whole.model_copy(update={"name": "another"}))
    assert (found.products, found.findings) == ((), [])
