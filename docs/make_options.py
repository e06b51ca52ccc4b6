"""Write docs/options.md: every option of the configuration, from the descriptions of its fields.

python docs/make_options.py     # `make docs`; a test fails where the page is not what this writes
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gaiadask.config.presets import MODEL_PRESETS, SECTION_PRESETS
from gaiadask.config.sections import Config

PAGE = Path(__file__).with_name("options.md")
HEAD = """\
<!-- Written by docs/make_options.py (`make docs`) from the descriptions in gaiadask/config: change them there. -->

# Options

A configuration is a TOML file; `gaiadask init gaia.toml` writes one with every option, its meaning and its default. An option that
the file leaves out has its default. An unknown option, or a value that does not fit, is refused before anything runs.
"""
PRESETS = """\
## What a preset of [model] changes

With the preset these options have another default; what the file says still wins.
"""
NAMES: dict[Any, str] = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "any"}
SIGNS: dict[Any, str] = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}


def options_page() -> str:
    """The page, as Markdown."""
    lines = [HEAD]
    for section, model in sections(Config):
        lines += [f"## [{section}]" if section else "## At the top of the file", ""]
        lines += [str(model.__doc__).strip().split("\n\n")[0].replace("\n", " "), ""] if section else []
        lines += ["| option | default | values | meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(option, field) for option, field in model.model_fields.items() if not is_section(field)]
        lines.append("")
    lines += [PRESETS, "| preset | section | defaults |", "| --- | --- | --- |"]
    for table, presets in {"model": MODEL_PRESETS, **SECTION_PRESETS}.items():
        for preset, values in presets.items():
            if values:
                lines.append(f"| `{preset}` | [{table}] | {', '.join(f'`{o} = {_toml(v)}`' for o, v in values.items())} |")
    return "\n".join(lines) + "\n"


def sections(model: type[BaseModel], name: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The configuration and its sections, those of sections too, by their names in the file; "" is the file itself."""
    yield name, model
    for option, field in model.model_fields.items():
        if is_section(field):
            yield from sections(field.annotation, f"{name}.{option}".lstrip("."))  # type: ignore[arg-type]


def is_section(field: FieldInfo) -> bool:
    """Whether it is a section, not an option."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _row(option: str, field: FieldInfo) -> str:
    cells = f"`{option}`", f"`{_toml(field.get_default(call_default_factory=True))}`", _values(field), field.description or ""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _values(field: FieldInfo) -> str:
    """The type, and the limits of it."""
    limits = [
        f"{sign} {getattr(m, kind.__name__.lower())}" for m in field.metadata for kind, sign in SIGNS.items() if isinstance(m, kind)
    ]
    choices = field.json_schema_extra.get("enum") if isinstance(field.json_schema_extra, dict) else None
    values = ", ".join(f"`{choice}`" for choice in choices) if isinstance(choices, list) else _type(field.annotation)
    return ", ".join([values, *limits])


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is Annotated:
        positive = any(isinstance(m, Gt) and m.gt == 0 for m in arguments[1:])
        return ("positive " if positive else "") + _type(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(map(_type, arguments))
    if origin is tuple:
        return f"list of: {_type(arguments[0])}"
    if origin is dict:
        return f"table of: {_type(arguments[1])}"
    return NAMES.get(annotation, str(annotation))


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    PAGE.write_text(options_page(), encoding="utf-8")
