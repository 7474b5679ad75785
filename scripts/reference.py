"""What the README shows of the command line, made by the commands themselves: `./scripts/reference` writes it anew.

That is each command's `--help`, and what `inspect` says of the sample that the README walks through.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from usage_ledger.cli.main import main

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- reference: made by ./scripts/reference -->\n", "<!-- end of reference -->\n"
SHOWN, SHOWN_END = "<!-- inspected: made by ./scripts/reference -->\n", "<!-- end of inspected -->\n"
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
    """The reference as it stands in the README."""
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
            cwd=README.parent,
            env={**os.environ, **nowhere},
        )
    return f"```\n$ usage-ledger {' '.join(SAMPLE)}\n{done.stdout.decode()}```\n"


def replaced(readme: str) -> str:
    """The README with what the commands say made anew."""
    for begin, end, made in ((BEGIN, END, reference), (SHOWN, SHOWN_END, inspected)):
        before, rest = readme.split(begin)
        _, after = rest.split(end)
        readme = f"{before}{begin}\n{made()}\n{end}{after}"
    return readme


if __name__ == "__main__":
    written = README.read_text(encoding="utf-8")
    README.write_text(replaced(written), encoding="utf-8")
    print("README.md is as it was" if replaced(written) == written else "README.md is made anew", file=sys.stderr)
