"""Settle: what `usage-ledger reconcile` changes: rows filled in from the bill, proposals, and adjustments.

Room: cli. Imports click, the upstream room, the prices room and the ledger. Promises that nothing is forced: only a row
that alone explains a difference is filled in, and an adjustment is never a row.
"""

import csv
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import click

from usage_ledger.cli.changes import make_changes, open_to_change
from usage_ledger.cli.output import on_one_line, whole_file
from usage_ledger.cli.spreadsheets import safe
from usage_ledger.ledger.adjustments import Adjustment, last_adjustment
from usage_ledger.ledger.adjustments import adjust as store
from usage_ledger.ledger.bill import KINDS, api_keys
from usage_ledger.ledger.closing import archived_before
from usage_ledger.ledger.corrections import correction, with_counts
from usage_ledger.ledger.editing import Change, Editor
from usage_ledger.ledger.reading import open_for_reading
from usage_ledger.prices.pricer import Pricer
from usage_ledger.upstream.answers import BillError
from usage_ledger.upstream.explain import Explained, explain
from usage_ledger.upstream.reconcile import DIMENSIONS, reconcile
from usage_ledger.upstream.verdicts import SETTLED


class How(NamedTuple):
    """What is settled, and in which way: a span, whether open days count, and what is said and allowed."""

    since: str
    until: str
    takes_open: bool
    note: str
    reopen: bool
    dry_run: bool


def fill_in(db: Path, how: How, margin: timedelta, pricer: Pricer) -> None:
    """Fill in the flagged rows that alone explain a difference, all of them or none."""
    with open_to_change(db, how.dry_run) as ledger:
        explained, left = explain(ledger, how.since, how.until, margin, how.takes_open)
        changes = [_change(each, how.note, pricer) for each in explained]
        make_changes(ledger, "reconcile", changes, all_or_none=True, reopen=how.reopen)
    for change in changes:
        told = ", ".join(
            f"{name} {change.expected[name]} → {change.after[name]}"
            for name in ("input_tokens", "output_tokens", "total_tokens", "total_cost")
        )
        _say(f"{'would fill in' if how.dry_run else 'filled in'} {change.record_id}: {told}")
    _say(f"{'would fill in' if how.dry_run else 'filled in'} {len(changes):,} row(s)")
    several = sum(len(each.candidates) > 1 for each in left)
    if several:
        _say(f"{several:,} difference(s) could be of several flagged rows; --proposals FILE lists them")


def _change(each: Explained, note: str, pricer: Pricer) -> Change:
    record = each.entry.record
    counts = {name: count for name, count in each.counts.items() if count != getattr(record, name)}
    reason = note or f"the bill from {each.since} to {each.until}"
    return correction(each.entry, with_counts(record, counts), reason, pricer.give)


_OF_PROPOSALS = ("since", "until", "model", "api_key", "why", *KINDS, "id", "request_id", "occurred_at", "usage_state")


def propose(dbs: Sequence[Path], how: How, margin: timedelta, path: Path) -> None:
    """Write down what no row alone explains: a line for each flagged row that could be it, or one where none could."""
    with open_for_reading(*dbs) as ledger:
        _, left = explain(ledger, how.since, how.until, margin, how.takes_open)
    with whole_file(path) as out:
        lines = csv.writer(out, lineterminator="\r\n")
        lines.writerow(_OF_PROPOSALS)
        for each in left:
            told = [each.since, each.until, each.model, each.key, each.why, *each.differences.values()]
            rows = [(row.id, row.request_id, row.occurred_at, row.usage_state) for row in each.candidates]
            lines.writerows([safe(value) for value in (*told, *row)] for row in rows or [("", "", "", "")])
    _say(f"{path}: {len(left):,} difference(s) that no row alone explains")


def adjust(db: Path, how: How) -> None:
    """Close what is left with adjustments, told apart as far as both sides can be."""
    with open_to_change(db, how.dry_run) as ledger:
        until = archived_before(ledger)
        if until is not None and how.since < until:
            raise BillError(
                f"rows before {until[:10]} are archived, and are missing for that reason: --since {until[:10]}"
            )
        after = last_adjustment(ledger)
        by = DIMENSIONS if api_keys(ledger) else DIMENSIONS[:2]
        try:
            result = reconcile(ledger, how.since, how.until, by, takes_open=how.takes_open)
        except BillError:
            if by == DIMENSIONS[:2]:
                raise
            by = DIMENSIONS[:2]  # a Console's CSV does not have the ids of workspaces
            result = reconcile(ledger, how.since, how.until, by, takes_open=how.takes_open)
        made = [
            Adjustment(bucket.keys[0], bucket.keys[1], *_place(bucket.keys), tuple(bucket.differences().values()))
            for bucket in result.buckets
            if bucket.verdict not in SETTLED and not bucket.is_batch and any(bucket.differences().values())
        ]
        if isinstance(ledger, Editor):
            store(ledger, made, after, how.note or "adjusted to the bill", how.reopen)
    tokens = sum(sum(each.counts[:-1]) for each in made)
    _say(f"{'would adjust' if how.dry_run else 'adjusted'} {len(made):,} bucket(s) by {tokens:+,} tokens")


def _place(keys: tuple[str, ...]) -> tuple[str, str]:
    """Return a bucket's key and workspace, as adjustments name them."""
    if len(keys) < len(DIMENSIONS):
        return "", ""
    return ("" if keys[2] == "(none)" else keys[2]), keys[3]


def _say(text: str) -> None:
    click.echo(on_one_line(text), err=True)
