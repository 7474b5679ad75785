"""`usage-ledger close`: the books of a period are closed, and what comes late is told.

Room: cli. Imports click and the ledger.
"""

from pathlib import Path

import click

from usage_ledger.cli.options import Moment, with_ledger, with_needed_note
from usage_ledger.cli.output import for_people, say
from usage_ledger.ledger.moments import short


@click.command()
@with_ledger
@click.option("--until", type=Moment(past=True), required=True, metavar="WHEN", help="Rows before this time (UTC).")
@with_needed_note
def close(db: Path, until: str, note: str) -> None:
    """Close the books: totals and the head of the trail become an entry of the trail.

    A period goes from the last closing to this one. No command changes a row of it afterwards, but with --reopen. A
    proxy does, because no request may be lost: rows that come late, or get better usage from a replay, are told by
    check and verify until the period is closed again, by its own end.

    \b
    Examples:
      usage-ledger close --until 2026-11-01 --note "October, invoice 7"
    """
    from usage_ledger.ledger.closing import close_books
    from usage_ledger.ledger.editing import open_for_editing

    with open_for_editing(db) as ledger:
        entry = close_books(ledger, until, note)
    out = for_people()

    since = entry["closed_since"]
    say(out, f"closed: {f'from {short(since)} ' if since else ''}until {short(until)}")
    say(out, f"requests: {entry['requests']:,}, tokens: {entry['total_tokens']:,}, billed: {entry['billed_cost']} USD")
    if entry["subscription_list_price"] != "0":
        say(out, f"subscriptions: {entry['subscription_list_price']} USD at list price, on no bill")
    say(
        out,
        f"left open: {entry['flagged']:,} flagged, {entry['unpriced']:,} without a price, "
        f"{entry['unsettled']:,} without final usage",
    )
    state = entry["reconciliation"]
    if state is None:
        say(out, "not reconciled with the bill (see reconcile)")
    else:
        say(out, f"reconciled {state['run_at']}: {state['left']:,} difference(s) left")
    if entry["late"]:
        say(out, f"taken in: {entry['late']:,} row(s) that came or changed since the period was closed before")
    say(out, f"entry {entry['position']:,} of the trail: {entry['hash']}")
