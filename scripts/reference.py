"""What the handbook shows of commands and columns, made by these themselves: `./scripts/reference` writes it anew.

That is each command's `--help`, what `inspect` says of the sample that the handbook walks through, and the columns of a
row.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from usage_ledger.cli.main import main

from scripts.dictionary import dictionary

HANDBOOK = Path(__file__).parent.parent / "HANDBOOK.md"
BEGIN, END = "<!-- reference: made by ./scripts/reference -->\n", "<!-- end of reference -->\n"
SHOWN, SHOWN_END = "<!-- inspected: made by ./scripts/reference -->\n", "<!-- end of inspected -->\n"
COLUMNS, COLUMNS_END = "<!-- columns: made by ./scripts/reference -->\n", "<!-- end of columns -->\n"
WIDTH = 100
SAMPLE = ("inspect", "data/flows/client-left-mid-stream.mitm", "--events")


def commands(
    group: click.Group, name: str, parent: click.Context | None = None
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Each command with its full name, subcommands after their group, in the context in which it runs."""
    told = {"max_content_width": WIDTH, "terminal_width": WIDTH, **group.context_settings}
    with click.Context(group, parent, info_name=name, **told) as context:
        yield context.command_path, group, context
        for each in group.list_commands(context):
            command = group.get_command(context, each)
            assert command is not None
            if isinstance(command, click.Group):
                yield from commands(command, each, context)
            else:
                with click.Context(
                    command, context, info_name=each, max_content_width=WIDTH, terminal_width=WIDTH
                ) as inner:
                    yield inner.command_path, command, inner


def reference() -> str:
    """The reference as it stands in the handbook."""
    parts = []
    for name, command, context in commands(main, "usage-ledger"):
        text = command.get_help(context).strip()
        parts.append(f"### `{name}`\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def inspected() -> str:
    """What `inspect` says of the sample, where there is no ledger."""
    with tempfile.TemporaryDirectory() as home:
        nowhere = {"HOME": home, "XDG_DATA_HOME": home, "USAGE_LEDGER_DB": "", "COLUMNS": str(WIDTH), "PYTHONUTF8": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "usage_ledger", *SAMPLE],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            cwd=HANDBOOK.parent,
            env={**os.environ, **nowhere},
        )
    return f"```\n$ usage-ledger {' '.join(SAMPLE)}\n{done.stdout.decode()}```\n"


def replaced(handbook: str) -> str:
    """The handbook with what the commands and the schema say made anew."""
    made = ((BEGIN, END, reference), (SHOWN, SHOWN_END, inspected), (COLUMNS, COLUMNS_END, dictionary))
    for begin, end, make in made:
        before, rest = handbook.split(begin)
        _, after = rest.split(end)
        handbook = f"{before}{begin}\n{make()}\n{end}{after}"
    return handbook


if __name__ == "__main__":
    written = HANDBOOK.read_text(encoding="utf-8")
    made = replaced(written)
    HANDBOOK.write_text(made, encoding="utf-8")
    print("HANDBOOK.md is as it was" if made == written else "HANDBOOK.md is made anew", file=sys.stderr)
