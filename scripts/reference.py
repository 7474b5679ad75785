"""The README's reference of the command line, made of each command's `--help`: `./scripts/reference` writes it anew."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from usage_ledger.cli.main import main

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- reference: made by ./scripts/reference -->\n", "<!-- end of reference -->\n"
WIDTH = 100


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Each command with its full name, subcommands after their group."""
    with click.Context(group, info_name=name, max_content_width=WIDTH, terminal_width=WIDTH) as context:
        yield name, group, context
        for each in sorted(group.commands):
            command = group.commands[each]
            if isinstance(command, click.Group):
                yield from commands(command, f"{name} {each}")
            else:
                with click.Context(
                    command, info_name=f"{name} {each}", max_content_width=WIDTH, terminal_width=WIDTH
                ) as inner:
                    yield f"{name} {each}", command, inner


def reference() -> str:
    """The reference as it stands in the README."""
    parts = []
    for name, command, context in commands(main, "usage-ledger"):
        text = command.get_help(context).strip()
        parts.append(f"### `{name}`\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def replaced(readme: str) -> str:
    """The README with its reference made anew."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{reference()}\n{END}{after}"


if __name__ == "__main__":
    written = README.read_text(encoding="utf-8")
    README.write_text(replaced(written), encoding="utf-8")
    print("README.md is as it was" if replaced(written) == written else "README.md is made anew", file=sys.stderr)
