"""The `usage-ledger` command: its group, and how every failure a person can cause ends.

Room: cli. Imports click, and the module of the command that runs. Promises: data on stdout and talk on stderr; one line
and exit code 2 for wrong usage, unusable input or nowhere to write to, never a traceback; a pipe that closes early is
not an error.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TextIO

import click

from usage_ledger import __version__
from usage_ledger.cli.output import FOUND, on_one_line
from usage_ledger.ledger.marks import LedgerError


class _EnoughError(Exception):
    """Whoever reads our output has closed the pipe. (click would make a failure of it.)

    `code` is what the command would have ended with, as far as it knows.
    """

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


@contextmanager
def _readers_may_leave(context: click.Context | None = None) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _EnoughError(context.meta.get(FOUND, 0) if context is not None else 0) from error


COMMANDS = {
    name: f"usage_ledger.cli.{'import_' if name == 'import' else name}"
    for name in (
        *("addon", "archive", "backfill", "backup", "check", "close", "export", "fetch", "import", "inspect", "price"),
        *("pull", "push", "reconcile", "redact", "review", "rows", "serve", "summary", "verify"),
    )
}
"""The commands, each with its module, in which it has the module's name; it is loaded once somebody asks for it."""


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature, as the next one's
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), module.rpartition(".")[2])
        return command

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        with _readers_may_leave():  # --help and --version are answered in here
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with _readers_may_leave(ctx):
            result = super().invoke(ctx)
            sys.stdout.flush()
        return result


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="usage-ledger")
def main() -> None:
    """Read and keep the books of what Claude billed, one row per request.

    The rows are written by the proxy (mitmdump -s addon/usage.py). Every command takes --db PATH; without it the
    ledger is $USAGE_LEDGER_DB, else usage-ledger/usage.db in your data folder.
    """


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process: 0 fine, 1 a check found something, 2 wrong usage or unusable input."""
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(_exit_code(arguments))


def _stop(number: int, _frame: object) -> None:
    """End in order, so that what is half-made is taken away."""
    sys.exit(128 + number)


def _exit_code(arguments: Sequence[str] | None) -> int:
    if sys.stdout is None:
        return _fail("there is nowhere to write to: standard output is closed")
    try:
        result = main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except _EnoughError as enough:
        _forget(sys.stdout)  # whoever read from us has enough
        return enough.code
    except click.exceptions.NoArgsIsHelpError as error:
        _tell(error.format_message())
        return 2
    except click.ClickException as error:
        return _fail(error.format_message())
    except (LedgerError, OSError) as error:
        return _fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        _tell("usage-ledger: stopped")
        return 130
    return result if isinstance(result, int) else 0


def _fail(message: str) -> int:
    # A message may quote what a damaged ledger holds.
    _tell(f"usage-ledger: {on_one_line(' '.join(message.split()))}")
    return 2


def _tell(message: str) -> None:
    try:
        click.echo(message, err=True)
    except OSError:
        _forget(sys.stderr)  # nobody listens, and the exit code says it all


def _forget(stream: TextIO) -> None:
    """Let what is left in a stream's buffer go nowhere, so that it does not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
