"""The options that commands share: which ledger, and which of its rows.

Room: cli. Imports click and the ledger's filters and paths; the prices room where something is priced, and the flows
room (which loads mitmproxy) where flows are chosen.
"""

import os
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usage_ledger.ledger.columns import STATES
from usage_ledger.ledger.filters import Filters
from usage_ledger.ledger.moments import as_moment, as_span, now
from usage_ledger.ledger.paths import ledger_path

if TYPE_CHECKING:
    from usage_ledger.prices.pricer import Pricer

LEDGERS_LIMIT = 11
"""SQLite attaches 10 files to one."""


class Moment(click.ParamType[str]):
    """A date, a time or a span ago, as a ledger time; where it is `past`, not one that is still to come."""

    name = "when"

    def __init__(self, past: bool = False) -> None:
        self._past = past

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            moment = as_moment(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time; say 2026-11-01, 2026-11-01T08:30+01:00, 90m, 24h or 7d", param, ctx)
        if self._past and moment > now():
            self.fail(f"{value!r} is in the future", param, ctx)
        return moment


class Span(click.ParamType[timedelta]):
    """How long, like 90m, 24h or 7d."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        try:
            span = as_span(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a span of time; say 90m, 24h or 7d", param, ctx)
        if span.days > 36_500:
            self.fail(f"{value!r} is longer than a hundred years", param, ctx)
        return span


class Names(click.ParamType[tuple[str, ...]]):
    """Names of known things, with commas between them; `what` is what one of them is called."""

    def __init__(self, what: str, known: Collection[str]) -> None:
        self.name = f"{what}s"
        self._what = what
        self._known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = tuple(str(value).split(","))
        for name in names:
            if name not in self._known:
                self.fail(f"{name!r} is no {self._what}; there are {', '.join(self._known)}", param, ctx)
        if len(set(names)) < len(names):
            self.fail(f"{value!r} names a {self._what} twice", param, ctx)
        return names


class FilterExpression(click.ParamType[Any]):
    """A filter of mitmproxy's, which says what requests are metered."""

    name = "filter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from usage_ledger.flows.metered import parsed_filter  # which loads mitmproxy

        try:
            return parsed_filter(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


with_filter = click.option(
    "--filter",
    "chosen",
    metavar="EXPR",
    type=FilterExpression(),
    help="The usage_filter of the proxy; requests that it has noted as metered count in any case.",
)


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


_DEFAULT_LEDGER = "Default: $USAGE_LEDGER_DB, else usage-ledger/usage.db in your data folder."


def with_ledger[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    """Add `--db`; the command gets `db`, a path."""
    return click.option("--db", metavar="PATH", multiple=True, callback=_ledger, help=f"The ledger. {_DEFAULT_LEDGER}")(
        command
    )


def with_ledgers[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    """Add `--db`, which may come several times; the command gets `dbs`, paths."""
    return click.option(
        "--db",
        "dbs",
        metavar="PATH",
        multiple=True,
        callback=_ledgers,
        help=f"The ledger; again for more, such as archives. {_DEFAULT_LEDGER}",
    )(command)


def _ledger(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> Path:
    """Return the ledger that is named; else the one that stands before the name of a subcommand."""
    paths = _ledgers(context, parameter, value)
    if len(paths) > 1:
        raise click.BadParameter("this command takes one ledger", context, parameter)
    return paths[0]


def _ledgers(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[Path, ...]:
    paths = tuple(map(ledger_path, value)) or _before(context) or (ledger_path(None),)
    if len(paths) > LEDGERS_LIMIT:
        raise click.BadParameter(f"{LEDGERS_LIMIT} ledgers can be read at once", context, parameter)
    if len(set(map(os.path.realpath, paths))) < len(paths):
        raise click.BadParameter("it names a ledger twice", context, parameter)
    return paths


def _before(context: click.Context) -> tuple[Path, ...]:
    """Return the ledgers that stand before the name of a subcommand."""
    return () if context.parent is None else context.parent.params.get("dbs") or ()


def named(dbs: Iterable[Path]) -> str:
    """Name ledgers, for a message."""
    return " and ".join(map(str, dbs))


def with_filters[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    """Add the shared filters; the command gets them as keywords for `filters_from`."""
    for option in reversed(
        (
            click.option("--since", type=Moment(past=True), help="From this time on: 2026-11-01, 24h, 7d (UTC)."),
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


def with_note[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    """Add `--note`, which may be left out; the command gets `note`, a text."""
    return click.option("--note", type=Words(), default="", metavar="TEXT", help="Why, for the trail.")(command)


def with_needed_note[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    """Add `--note`, without which the command does nothing."""
    return click.option(
        "--note", type=Words(), required=True, metavar="TEXT", callback=_not_blank, help="Why, for the trail."
    )(command)


def _not_blank(_context: click.Context, _parameter: click.Parameter, note: str) -> str:
    if not note.strip():
        raise click.UsageError("--note says why, and cannot be empty")
    return note


def without_ledger[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    """Add `--db` to a command that needs no ledger: every command takes it."""
    return click.option("--db", metavar="PATH", expose_value=False, help="Not needed here; every command takes it.")(
        command
    )


def with_prices[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    """Add `--prices`; the command gets `price_path`, for `own_pricer`."""
    return click.option(
        "--prices",
        "price_path",
        metavar="FILE",
        help="Own prices (TOML). Default: $USAGE_LEDGER_PRICES, else prices.toml beside the ledger if there is one.",
    )(command)


def own_pricer(given: str | None, db: Path) -> "Pricer":
    """Return what prices rows of this ledger: by own prices, if there are any, and by the list."""
    from usage_ledger.prices.own import PriceFileError, price_file, read_prices

    try:
        from usage_ledger.prices import listed
        from usage_ledger.prices.pricer import Pricer

        path = price_file(given, db)
        own = None if path is None else read_prices(path)
        if own is not None:
            own.check_models(listed.knows)
    except PriceFileError as error:
        raise click.ClickException(str(error)) from error
    except ImportError as error:
        raise click.ClickException(f"genai-prices cannot be loaded ({error}); install it again") from error
    return Pricer(own)


def filters_from(given: dict[str, Any]) -> Filters:
    """Make filters of the keywords that `with_filters` adds."""
    return Filters(**given)
