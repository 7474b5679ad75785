"""The `usage-ledger` command: its group, and how every failure a person can cause ends.

Room: cli. Imports click and the command modules. Promises: data on stdout and talk on stderr; one line and exit code 2
for wrong usage or unusable input, never a traceback; a pipe that closes early is not an error.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from usage_ledger import __version__
from usage_ledger.cli.export import export
from usage_ledger.cli.rows import rows
from usage_ledger.ledger.marks import LedgerError


class _EnoughError(Exception):
    """Whoever reads our output has closed the pipe. (click would make a failure of it.)"""


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise _EnoughError from error
        return result


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="usage-ledger")
def main() -> None:
    """Read and keep the books of what Claude billed, one row per request.

    The rows are written by the proxy (mitmdump -s addon/usage.py). Every command takes --db PATH; without it the
    ledger is $USAGE_LEDGER_DB, else usage-ledger/usage.db in your data folder.
    """


main.add_command(export)
main.add_command(rows)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process: 0 fine, 1 a check found something, 2 wrong usage or unusable input."""
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        result = main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except _EnoughError:
        # Whoever read from us has enough. What is left in the buffer must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _fail(error.format_message())
    except (LedgerError, OSError) as error:
        return _fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("usage-ledger: stopped", err=True)
        return 130
    return result if isinstance(result, int) else 0


def _fail(message: str) -> int:
    click.echo(f"usage-ledger: {' '.join(message.split())}", err=True)
    return 2
