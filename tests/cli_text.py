"""The command line as a text: every command with its help, its arguments and options, their types, limits, defaults and help.

python tests/cli_text.py > tests/data/cli.txt     # after a change that is meant: the difference is seen in review
"""

from __future__ import annotations

from typing import Any

import typer

from gaiadask.cli import app


def cli_text() -> str:
    """One paragraph a command, in the order in which `gaiadask --help` lists them."""
    group: Any = typer.main.get_command(app)
    commands = {"gaiadask": group, **{f"gaiadask {name}": command for name, command in group.commands.items()}}
    return "\n".join(_paragraph(name, command) for name, command in commands.items())


def _paragraph(name: str, command: Any) -> str:
    lines = [name, *(f"    {line}".rstrip() for line in str(command.help).strip().splitlines())]
    context = command.context_class(command, info_name=name)
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record:
            lines += [f"  {record[0]}{' (several times)' if parameter.multiple else ''}", f"      {record[1]}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(cli_text(), end="")
