"""`usage-ledger fetch`: what upstream billed, from its Admin API into the ledger.

Room: cli. Imports click, the upstream room and the ledger.
"""

from pathlib import Path

import click

from usage_ledger.cli.options import Moment, Words, with_ledger
from usage_ledger.cli.output import for_people, progress
from usage_ledger.ledger.moments import now

_BASE_URL = "https://api.anthropic.com"


@click.command()
@with_ledger
@click.argument("what", type=click.Choice(("usage", "costs", "keys")))
@click.option("--since", type=Moment(past=True), help="From this time on: 2026-11-01, 24h, 7d (UTC). Not for keys.")
@click.option("--until", type=Moment(), help="Before this time (UTC). Default: now.")
@click.option(
    "--width",
    type=click.Choice(("1d", "1h", "1m")),
    default="1d",
    show_default=True,
    help="How long a bucket of usage is. The shorter, the more a difference tells.",
)
@click.option("--base-url", type=Words(), default=_BASE_URL, show_default=True, help="Where the Admin API is.")
def fetch(db: Path, what: str, since: str | None, until: str | None, width: str, base_url: str) -> None:
    """Fetch what upstream billed from the Admin API.

    The key is that of the environment (ANTHROPIC_ADMIN_KEY, which a Console's admin makes); it is never stored. Whole
    buckets are stored as they come, so that an interrupted fetch goes on where it was. Buckets that are open, or were
    when they were fetched, are fetched again; others are not.

    \b
    Examples:
      usage-ledger fetch keys
      usage-ledger fetch usage --since 2026-11-01 --until 2026-12-01
      usage-ledger fetch usage --since 24h --width 1m
      usage-ledger fetch costs --since 2026-11-01
    """
    from usage_ledger.ledger.editing import open_for_editing
    from usage_ledger.upstream import fetching
    from usage_ledger.upstream.answers import BillError
    from usage_ledger.upstream.api import AdminApi

    if (since is None) is not (what == "keys") or (what == "keys" and until is not None):
        raise click.UsageError("keys have no span" if what == "keys" else "--since says from when on")
    end = until or now()
    buckets = width if what == "usage" else "1d"
    try:
        api = AdminApi(base_url)
        with open_for_editing(db) as ledger:
            if since is None:
                stored = fetching.fetch_keys(ledger, api)
            else:
                count = fetching.spans(since, end, buckets)
                with progress("fetching", lambda: count) as advance:
                    if what == "usage":
                        stored = fetching.fetch_usage(ledger, api, since, end, width, advance)
                    else:
                        stored = fetching.fetch_costs(ledger, api, since, end, advance)
    except BillError as error:
        raise click.ClickException(str(error)) from error
    for_people().write(
        f"{what}: {stored.new:,} new, {stored.changed:,} changed, {stored.same:,} known "
        f"{'keys' if what == 'keys' else 'buckets'}\n"
    )
