"""The options that commands share: which ledger, and which of its rows.

Room: cli. Imports click and the ledger's filters and paths.
"""

from collections.abc import Callable
from typing import Any

import click

from usage_ledger.ledger.filters import Filters, as_moment
from usage_ledger.ledger.paths import ledger_path

STATES = ("pending", "complete", "partial", "missing", "none")


class Moment(click.ParamType[str]):
    """A date, a time or a span ago, as a ledger time."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return as_moment(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time; say 2026-11-01, 2026-11-01T08:30+01:00, 90m, 24h or 7d", param, ctx)


class Words(click.ParamType[str]):
    """Text that a ledger can hold. What a shell hands over may be any bytes."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"{text!r} is not UTF-8 text", param, ctx)
        return text


def with_ledger[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    """Add `--db`; the command gets `db`, a path."""
    return click.option(
        "--db",
        metavar="PATH",
        callback=lambda _context, _parameter, value: ledger_path(value),
        help="The ledger. Default: $USAGE_LEDGER_DB, else usage-ledger/usage.db in your data folder.",
    )(command)


def with_filters[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    """Add the shared filters; the command gets them as keywords for `filters_from`."""
    for option in reversed(
        (
            click.option("--since", type=Moment(), help="From this time on: 2026-11-01, 24h, 7d (UTC)."),
            click.option("--until", type=Moment(), help="Before this time (UTC)."),
            click.option(
                "--account", "accounts", type=Words(), multiple=True, help="An account; * stands for any characters."
            ),
            click.option(
                "--key", "keys", type=Words(), multiple=True, metavar="HINT", help="An API key as the Console shows it."
            ),
            click.option(
                "--model", "models", type=Words(), multiple=True, help="A model; * stands for any characters."
            ),
            click.option("--tag", "tags", type=Words(), multiple=True, help="A tag; * stands for any characters."),
            click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="A usage state."),
            click.option("--flagged", is_flag=True, help="Only rows that want a manual review."),
        )
    ):
        command = option(command)
    return command


def filters_from(given: dict[str, Any]) -> Filters:
    """Make filters of the keywords that `with_filters` adds."""
    return Filters(**given)
