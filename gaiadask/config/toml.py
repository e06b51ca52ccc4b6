"""Configurations as TOML: read, checked, written with comments."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from gaiadask.config.cluster import LOGS, PATHS
from gaiadask.config.presets import MODEL_PRESETS, SECTION_PRESETS, latent_bits, model_defaults, set_beside_model
from gaiadask.config.section import Section
from gaiadask.config.sections import Config
from gaiadask.errors import ConfigurationError, known_names
from gaiadask.uris import absolute_uri, public_uri

Options = TypeVar("Options", bound=BaseModel)


def load_config(path: str | Path, **overrides: Any) -> Config:
    """Read a TOML configuration.

    Args:
        path: of the file.
        overrides: top-level options that replace the file's.

    Returns:
        The configuration.

    Raises:
        ConfigurationError: naming the file and each wrong option.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}: no such file. `gaiadask init {path}` writes one to start from") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigurationError(f"{path}: not a TOML file: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    values |= overrides
    folder = path.resolve().parent
    store, archive = values.get("store", Config.model_fields["store"].default), values.get("archive")
    if isinstance(store, str) and "://" not in store:
        values["store"] = str((folder / Path(store).expanduser()).resolve())
    if isinstance(archive, dict) and isinstance(uris := archive.get("uris"), list):
        values["archive"] = archive | {"uris": [absolute_uri(uri, folder) if isinstance(uri, str) else uri for uri in uris]}
    if isinstance(cluster := values.get("cluster"), dict):
        given = cluster | ({"logs": cluster.get("logs") or LOGS} if cluster.get("kind") == "slurm" or cluster.get("file") else {})
        paths = {option: given[option] for option in PATHS if isinstance(given.get(option), str) and given[option]}
        values["cluster"] = cluster | {option: absolute_uri(path, folder) for option, path in paths.items()}
    return parse_config(values, where=str(path))


def parse_config(values: dict[str, Any], where: str = "configuration") -> Config:
    """Validate a nested dict of options.

    Args:
        values: options by section, as a TOML file has them; what is left out has its default.
        where: what errors call it.

    Returns:
        The configuration.

    Raises:
        ConfigurationError: naming each wrong option.

    >>> parse_config({"model": {"columns": "seed25"}}).model.latents
    16
    """
    return parse_options(Config, values, where)


def parse_options(kind: type[Options], values: Mapping[str, object], where: str) -> Options:
    """Validate options.

    Args:
        kind: their type.
        values: by name.
        where: what errors call them.

    Raises:
        ConfigurationError: naming each wrong option.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(kind, problem) for problem in error.errors()]
        raise ConfigurationError(f"{where}:\n" + "\n".join(f"  {line}" for line in lines)) from error


def _explain(kind: type[BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    option = ".".join(location)
    if problem["type"] == "extra_forbidden":
        section = kind
        for part in location[:-1]:
            section = section.model_fields[part].annotation  # type: ignore[assignment]
        return f"{option}: unknown option; {known_names([option.rsplit('.', 1)[-1]], section.model_fields)}"
    message = problem["msg"].removeprefix("Value error, ")
    if not option:
        return str(message)  # what does not go together names its options
    found = public_uri(str(problem["input"]))[:80]
    return f"{option}: {message} (found {found!r})"


def dump_toml(config: Config, *, comments: bool = True) -> str:
    """The configuration as TOML, each option under its description where `comments`."""
    lines: list[str] = []
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Section):
            lines += ["", *([f"# {type(value).__doc__}"] if comments else []), f"[{name}]"]
            follows = _of_the_preset(config, name) if comments else {}
            for option, option_field in type(value).model_fields.items():
                chosen = getattr(value, option)
                written = option_lines(option, chosen, option_field, comments)
                if option in follows and follows[option] == chosen:
                    written[-1] = f"# {written[-1]}"
                lines += written
        else:
            lines += option_lines(name, value, field, comments)
    return "\n".join(lines) + "\n"


_FOLLOWING = {"model": {"latents"}, "latent": {"bits"}}
"""Options whose default follows other options than the preset."""


def _of_the_preset(config: Config, section: str) -> dict[str, Any]:
    """Options of a section whose default is another one with another preset, as the configuration's own preset, loss and columns
    set them."""
    presets = {"model": MODEL_PRESETS, **SECTION_PRESETS}.get(section, {})
    following = {option for preset in presets.values() for option in preset} | _FOLLOWING.get(section, set())
    own = _own_defaults(config, section)
    return {option: own[option] for option in following}


def _own_defaults(config: Config, section: str) -> dict[str, Any]:
    """What the options of a section are where only preset, loss and columns of [model] are given."""
    given = {"preset": config.model.preset, "loss": config.model.loss, "columns": config.model.columns}
    preset = {
        "model": model_defaults(given),
        **set_beside_model(config.model.preset),
        "latent": {"bits": latent_bits(config.model.model_dump())},
    }.get(section, {})
    fields = type(getattr(config, section)).model_fields
    return {option: preset.get(option, field.default) for option, field in fields.items()}


def only_given(config: Config) -> dict[str, Any]:
    """Options that differ from the defaults of the chosen preset, loss and columns, always with "model" and "training".

    `parse_config` of these makes the same configuration; with another preset, the other options follow it.
    """
    values = config.model_dump(mode="json", exclude_defaults=True)
    for section in ("latent", "prior"):
        values.pop(section, None)
    for section in ("model", "training", "latent", "prior"):
        own, given = _own_defaults(config, section), getattr(config, section)
        dumped = given.model_dump(mode="json")
        differing = {o: dumped[o] for o in own if o == "preset" or getattr(given, o) != own[o]}
        if differing or section in ("model", "training"):
            values[section] = differing
    return values


def option_lines(name: str, value: Any, field: Any = None, comments: bool = False) -> list[str]:
    """An option as TOML; comments: with what its field says of it."""
    note = [f"# {field.description}{_choices(field)}"] if comments else []
    if isinstance(value, dict):
        pairs = [f"{_toml(key)} = {_toml(item)}" for key, item in value.items()]
        return [*note, f"{name} = {{ {', '.join(pairs)} }}" if pairs else f"{name} = {{}}"]
    return [*note, f"{name} = {_toml(value)}"]


def _toml(value: Any) -> str:
    # JSON's strings, numbers, booleans and arrays are TOML's too, but for surrogate pairs and a bare DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _choices(field: Any) -> str:
    """The values to choose from: of a Literal, or those that a field names for its JSON schema."""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else (field.json_schema_extra or {}).get("enum")
    return f" [{' | '.join(choices)}]" if choices else ""
