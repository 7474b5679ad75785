"""Exchanging: what push and pull share.

Room: cli. Imports click.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from usage_ledger.cli.output import on_one_line

TOLD = 20
"""So many rows that were not taken are named, of each kind; the rest is counted."""


@contextmanager
def fleet_extra() -> Iterator[None]:
    """Say what to install where the extra is not there."""
    try:
        yield
    except ImportError as error:
        raise click.ClickException(
            f"this needs the extra `fleet` ({error}): pip install 'claude-usage-ledger[fleet]'"
        ) from error


def warn(what: str) -> None:
    """Say something on stderr, in one line."""
    click.echo(f"usage-ledger: {on_one_line(what)}", err=True)
