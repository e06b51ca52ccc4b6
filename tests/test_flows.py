"""The flows without a server: their parameters, what is tried again, progress lines, what is registered."""

from __future__ import annotations

import logging
import re
import socket
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed
from prefect.utilities.callables import parameter_schema

import gaiadask
from flows import reporting
from flows.deployments import DEPLOYED, parameters_of, register
from flows.gaia import as_chosen, may_pass, run
from flows.reporting import LogProgress, ProgressArtifact, artifact_key, compressed_markdown
from gaiadask import errors
from gaiadask.codec.bounds import Tolerance
from gaiadask.codec.compressed import CompressedColumn, CompressedRecord
from gaiadask.config.model import ModelConfig
from gaiadask.config.section import Section
from gaiadask.config.sections import Config, TrainingConfig
from gaiadask.config.toml import load_config, parse_config

FLOWS = list(DEPLOYED.values())
CHECKOUT = Path(__file__).parents[1]
OWN = {"stars": 1_000_000, "seed": 0, "cone": None, "magnitude": None, "output": ""}
DEFAULTS = {name: field.get_default() for name, field in Config.model_fields.items()}


# Parameters ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("flow", FLOWS, ids=list(DEPLOYED))
def test_parameters_are_the_configuration_with_its_defaults(flow: Flow[..., Any]) -> None:
    own = OWN if flow.fn.__name__ == "sample" else {}
    assert flow.validate_parameters({}) == DEFAULTS | own
    schema = parameter_schema(flow).model_dump_for_openapi()
    assert list(schema["properties"]) == [*own, *Config.model_fields]
    for shown in schema["properties"].values():
        described = schema["definitions"][shown["$ref"].rsplit("/", 1)[-1]] if "$ref" in shown else shown
        assert described["description"], shown
    assert all(option["description"] for section in schema["definitions"].values() for option in section["properties"].values())
    for name, default in DEFAULTS.items():
        shown = default.model_dump(mode="json") if isinstance(default, Section) else default
        assert schema["properties"][name]["default"] == shown
    # The server refuses by this schema, before a run exists.
    assert schema["definitions"]
    assert all(section["additionalProperties"] is False for section in schema["definitions"].values())
    assert not schema.get("required")


def test_a_section_given_in_part_has_gaiadasks_defaults_for_the_rest() -> None:
    given = DEPLOYED["train"].validate_parameters({"training": {"rows_seen": 7}})
    assert given == DEFAULTS | {"training": TrainingConfig(rows_seen=7)}


def test_another_preset_named_as_a_parameter_brings_its_training_too() -> None:
    config = parse_config({"store": "/store", "model": {"latents": 6}, "training": {"rows_seen": 9}})
    registered = parameters_of(config)
    assert parse_config(registered) == config
    assert parse_config(DEPLOYED["train"].validate_parameters(registered)) == config
    other = parse_config(DEPLOYED["train"].validate_parameters(registered | {"model": {"preset": "keras-2020"}}))
    assert other == parse_config({"store": "/store", "model": {"preset": "keras-2020"}, "training": {"rows_seen": 9}})


def test_a_preset_chosen_in_a_form_that_posts_every_field_is_that_preset() -> None:
    posted = {"model": ModelConfig().model_dump(mode="json"), "training": TrainingConfig().model_dump(mode="json")}
    posted["model"] |= {"preset": "keras-2020", "latents": 6}
    posted["training"] |= {"rows_seen": 9}
    chosen = parse_config(as_chosen(DEPLOYED["train"].validate_parameters(posted)))
    meant = parse_config({"model": {"preset": "keras-2020", "latents": 6}, "training": {"rows_seen": 9}})
    assert (chosen.model, chosen.training) == (meant.model, meant.training)
    assert meant.model.hidden != ModelConfig().hidden


def test_runs_are_named_after_what_they_do_and_their_run() -> None:
    assert {name: flow.flow_run_name for name, flow in DEPLOYED.items()} == {name: f"{name} {{name}}" for name in DEPLOYED}


@pytest.mark.parametrize(
    ("option", "parameters"),
    [
        ("training.rows_sen", {"training": {"rows_sen": 1}}),
        ("training.rows_seen", {"training": {"rows_seen": 0}}),
        ("archive.kind", {"archive": {"kind": "gaia"}}),
        ("model.columns", {"model": {"columns": ["parallaxe"]}}),
        ("name", {"name": "a b"}),
        ("rows", {"rows": 1}),
    ],
)
def test_wrong_parameters_are_refused_by_name(option: str, parameters: dict[str, Any]) -> None:
    with pytest.raises((ParameterTypeError, TypeError), match=re.escape(option)):
        DEPLOYED["train"].validate_parameters(parameters)


@pytest.mark.parametrize(
    "wrong", [{"stars": 0}, {"seed": -1}, {"cone": [1, 2]}, {"magnitude": ["a", 3]}, {"stars": "many"}], ids=repr
)
def test_wrong_wishes_for_new_stars_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises((ParameterTypeError, TypeError), match=next(iter(wrong))):
        DEPLOYED["sample"].validate_parameters(wrong)
    assert DEPLOYED["sample"].validate_parameters({"cone": [1, 2, 3]})["cone"] == (1, 2, 3)


def test_no_password_is_a_parameter() -> None:
    options = [option for section in DEFAULTS.values() if isinstance(section, Section) for option in type(section).model_fields]
    assert not [option for option in options if re.search("passw|secret|token|credential|login", option)]


# Retries -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "error",
    [
        errors.ArchiveError("busy"), errors.StoreError("full"), errors.TrainingError("a rank died"), errors.GaiadaskError("no worker"),
        errors.WorkersDiedError("the workers that tried it died"), errors.ClusterError("its scheduler is gone"), ConnectionResetError("gone"),
        TimeoutError(),
    ],
    ids=repr,
)  # fmt: skip
def test_what_can_pass_is_tried_again(error: Exception) -> None:
    assert may_pass(None, None, Failed(data=error))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        errors.ConfigurationError("unknown option"), errors.KeyMismatchError("other inputs"), errors.MissingStageError("no model"),
        errors.DataError("twice"), errors.StoreHeldError("held"), errors.WrongClusterError("invalid partition"), TypeError("a bug"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_comes_again_is_not_tried_again(error: Exception) -> None:
    assert not may_pass(None, None, Failed(data=error))  # type: ignore[arg-type]


def test_jobs_need_a_folder_that_their_machines_see(tmp_path: Path) -> None:
    """A Prefect worker runs a flow in a temporary folder of its machine, which dask-jobqueue would have logs and certificates in."""
    (tmp_path / "gaia.toml").write_text('[cluster]\nkind = "slurm"\nworkers = 2\n')
    config = load_config(tmp_path / "gaia.toml")
    assert parameters_of(config)["cluster"]["logs"] == str(tmp_path / "gaiadask-jobs")  # type: ignore[index, call-overload]
    with pytest.raises(errors.ConfigurationError, match=r"cluster\.logs is empty: name a folder that all machines see"):
        run(parse_config({"cluster": {"kind": "slurm", "workers": 2}}))


# Progress ------------------------------------------------------------------------------------------------------------
class Clock:
    """Seconds, as told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Shown(ProgressArtifact):
    """One that no server is told of."""

    def __init__(self, name: str, task: str) -> None:
        super().__init__(name, task)
        self.percents: list[int] = []

    def show(self, percent: float) -> None:
        self.id = uuid4()
        self.percents.append(round(percent))


def test_progress_is_a_line_each_tenth(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flows")
    clock = Clock()
    shown = Shown("dr2", "fetch")
    progress = LogProgress(lambda _: shown, clock)
    progress.start("fetch", 1000, "chunks")
    for _ in range(1000):
        clock.now += 0.25
        progress.advance("fetch", note="mock-7")
    progress.finish("fetch")
    assert len(caplog.messages) == 10 + 1
    assert caplog.messages[4] == "fetch: 500 of 1,000 chunks (50%), 4 chunks/s, 125 s left, mock-7"
    assert caplog.messages[-1] == "fetch: 1,000 chunks in 250.0 s"
    assert shown.percents == [20, 30, 40, 50, 60, 70, 80, 90, 100, 100]  # of the first 30 s none
    assert shown.key == "progress-dr2-fetch"


def test_slow_progress_is_a_line_each_half_minute_and_fast_progress_no_flood(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flows")
    clock = Clock()
    shown = Shown("dr2", "fast")
    progress = LogProgress(lambda _: shown, clock)
    progress.start("slow", 1000, "chunks")
    progress.start("fast", 1000, "stars")
    for _ in range(31):
        clock.now += 1
        progress.advance("slow")
    assert len(caplog.messages) == 1
    for _ in range(1000):
        clock.now += 0.001
        progress.advance("fast")
    progress.finish("fast")
    assert [m.split(":")[0] for m in caplog.messages] == ["slow", "fast", "fast"]


def test_a_server_that_does_not_answer_ends_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Any] = [httpx.ConnectError("refused"), uuid4()]

    def made(*_: object) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(reporting, "create_progress_artifact", made)
    artifact = ProgressArtifact("dr2", "train")
    artifact.show(10)
    assert "train: its progress is not shown: refused" in caplog.text
    artifact.show(20)
    assert artifact.id is not None and not answers


def test_artifact_keys_are_what_prefect_takes() -> None:
    assert artifact_key("quality", "DR2_wide.v1") == "quality-dr2-wide-v1"
    assert re.fullmatch("[a-z0-9-]+", artifact_key("report", "x--Y._"))


# Deployments ---------------------------------------------------------------------------------------------------------
def test_prefect_yaml_registers_the_same_deployments_on_made_up_stars() -> None:
    shipped = yaml.safe_load((CHECKOUT / "deploy" / "prefect.yaml").read_text())["deployments"]
    assert [each["name"] for each in shipped] == list(DEPLOYED)
    for each in shipped:
        flow = DEPLOYED[each["name"]]
        assert each["entrypoint"] == f"{flow.__module__}.{each['name']}"
        parameters = {name: value for name, value in each["parameters"].items() if name not in OWN}
        assert parse_config(parameters).archive.kind == "mock"
        assert flow.validate_parameters(each["parameters"])["name"] == "demo"


@pytest.mark.slow
def test_no_server_is_an_error_with_its_remedy() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/api"
        with (
            temporary_settings({PREFECT_API_URL: url}),
            pytest.raises(errors.GaiadaskError, match="prefect server start") as raised,
        ):
            register(Config())
    assert url in str(raised.value)
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(errors.GaiadaskError, match="PREFECT_API_URL"):
        register(Config())


def test_the_library_does_not_import_prefect() -> None:
    files = list(Path(gaiadask.__file__).parent.rglob("*.py"))
    assert len(files) > 10
    assert not [file.name for file in files if re.search(r"^\s*(from|import) prefect", file.read_text(), re.MULTILINE)]


def test_a_compressed_catalogue_reads_as_a_table() -> None:
    column = CompressedColumn(
        bytes=24_500, worst=0.999, exceptions=3, tolerance=Tolerance(kind="sigma", amount=0.1, error="parallax_error"), raw_bits=64,
        alone_bits=9.31, noise_bits=4.37,
    )  # fmt: skip
    record = CompressedRecord(
        version=1, key="k", catalogue_id="c", bound_sigma=0.1, card="s", tables="t", rows=10_000, bytes=50_000,
        columns={"parallax": column}, sizes=(), partitions=(),
    )  # fmt: skip
    text = compressed_markdown("dr2", record)
    assert "10,000 stars in **5.00 bytes** each" in text
    assert "| parallax | 64 | 9.31 | 19.60 | 0.9990 | 3 |" in text
