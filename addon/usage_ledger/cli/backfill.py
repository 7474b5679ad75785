"""`usage-ledger backfill`: what upstream billed, for rows whose usage it did not tell.

Room: cli. Imports click, the prices room and the ledger. Promises that it is all or nothing, that every bad line is
told, and that doing it twice changes nothing.
"""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from usage_ledger.cli.backfill_file import KEYS, Line, LineError, read
from usage_ledger.cli.changes import make_changes, open_to_change, with_reopen
from usage_ledger.cli.options import Words, own_pricer, with_ledger, with_note, with_prices
from usage_ledger.cli.output import for_people, on_one_line, say
from usage_ledger.ledger.columns import COUNT_COLUMNS
from usage_ledger.ledger.money import as_amount, as_text
from usage_ledger.ledger.reading import Reader

if TYPE_CHECKING:
    from usage_ledger.ledger.editing import Change
    from usage_ledger.ledger.record import Entry
    from usage_ledger.prices.pricer import Pricer

BAD_LINES_SHOWN = 20


class _Permits(NamedTuple):
    """What may be changed: with `force` what upstream told as well, and nothing before `closed_until`."""

    force: bool
    closed_until: str | None


def _with_counts[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    for name in reversed(COUNT_COLUMNS):
        command = click.option(f"--{name.replace('_', '-')}", name, type=click.IntRange(min=0), help=_HELP[name])(
            command
        )
    return command


_HELP = {
    "input_tokens": "Uncached input.",
    "output_tokens": "Output, thinking included.",
    "cache_creation_input_tokens": "Cache writes, of any duration.",
    "cache_creation_5m_input_tokens": "5-minute cache writes.",
    "cache_creation_1h_input_tokens": "1-hour cache writes.",
    "cache_read_input_tokens": "Cache reads.",
    "thinking_tokens": "The part of the output that was thinking.",
    "web_search_requests": "Web searches.",
    "web_fetch_requests": "Web fetches.",
}


@click.command()
@with_ledger
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--id", "id_", type=Words(), help="The row, by its id,")
@click.option("--request-id", type=Words(), help="by upstream's request id,")
@click.option("--message-id", type=Words(), help="or by upstream's message id.")
@_with_counts
@with_note
@click.option("--force", is_flag=True, help="Change rows too that are complete, or are not billed.")
@with_prices
@with_reopen
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
def backfill(
    db: Path,
    file: Path | None,
    id_: str | None,
    request_id: str | None,
    message_id: str | None,
    note: str,
    force: bool,
    price_path: str | None,
    reopen: bool,
    dry_run: bool,
    **counts: int | None,
) -> None:
    """Fill in what upstream billed: one row by options, or many from a CSV file.

    FILE has a header; each line finds its row by id, request_id or message_id, and has counts (input_tokens,
    output_tokens, ...) and perhaps a note. An export will do: fill in the counts of what is known and leave the rest.
    Empty cells, and lines without a change, change nothing. All lines are used, or none.

    Rows get their total and their cost as well, leave the review queue, and are marked as corrected by hand. Each
    leaves an entry in the trail.

    \b
    Examples:
      usage-ledger backfill --request-id req_011C --input-tokens 1200 --output-tokens 340 --note "invoice 7"
      usage-ledger export --flagged > flagged.csv      # fill in what is missing, then
      usage-ledger backfill flagged.csv --dry-run
      usage-ledger backfill flagged.csv
    """
    from usage_ledger.ledger import closing

    given = {name: count for name, count in counts.items() if count is not None}
    keys = {name: value for name, value in zip(KEYS, (id_, request_id, message_id), strict=True) if value is not None}
    if file is not None:
        if given or keys:
            raise click.UsageError("give a FILE, or a row and its counts, and not both")
        lines, bad = read(file, note)
    else:
        if len(keys) != 1 or not given:
            raise click.UsageError("give a FILE, or one of --id, --request-id and --message-id with counts")
        ((key, value),) = keys.items()
        lines, bad = [Line(f"{key} {value}", keys, given, note, {}, confirms=True)], []
    with open_to_change(db, dry_run) as ledger:
        permits = _Permits(force, None if reopen else closing.closed_until(ledger))
        changes, more_bad = _changes(lines, ledger, own_pricer(price_path, db), permits)
        _refuse([*bad, *more_bad])
        make_changes(ledger, "backfill", changes, all_or_none=True, reopen=reopen)
    _report(changes, len(lines), dry_run)


def _refuse(bad: list[str]) -> None:
    """Tell all bad lines, and end where there are any."""
    if len(bad) == 1:
        raise click.ClickException(f"{bad[0]}; no row is changed")
    if not bad:
        return
    for line in bad[:BAD_LINES_SHOWN]:
        click.echo(on_one_line(line), err=True)
    if len(bad) > BAD_LINES_SHOWN:
        click.echo(f"and {len(bad) - BAD_LINES_SHOWN} more", err=True)
    raise click.ClickException(f"{len(bad)} lines cannot be used, so no row is changed")


def _changes(
    lines: list[Line], ledger: Reader, pricer: "Pricer", permits: _Permits
) -> tuple[list["Change"], list[str]]:
    """Return the changes that the lines make, and what is wrong with those that cannot be used."""
    from usage_ledger.ledger.entries import entries_by

    found: dict[tuple[str, str], list[Entry]] = {}
    for key in KEYS:
        values = [line.keys[key] for line in lines if next(iter(line.keys)) == key]
        for entry in entries_by(ledger, key, values) if values else []:
            found.setdefault((key, getattr(entry.record, key)), []).append(entry)
    changes: list[Change] = []
    bad = []
    seen: set[str] = set()
    for line in lines:
        try:
            entry = _row(line, found.get(next(iter(line.keys.items())), []))
            if entry.record.id in seen:
                raise LineError("an earlier line is about the same row")
            seen.add(entry.record.id)
            change = _change(line, entry, pricer, permits)
        except LineError as error:
            bad.append(f"{line.place}: {error}")
        else:
            changes += [] if change is None else [change]
    return changes, bad


def _row(line: Line, entries: list["Entry"]) -> "Entry":
    """Return the one row that a line is about."""
    key, value = next(iter(line.keys.items()))
    if not entries:
        raise LineError(f"there is no row with the {key} {value}")
    if len(entries) > 1:
        raise LineError(f"{len(entries)} rows have the {key} {value}; say which by its id")
    for name, said in line.keys.items():
        if said != getattr(entries[0].record, name):
            raise LineError(f"the row with the {key} {value} does not have the {name} {said}")
    return entries[0]


def _change(line: Line, entry: "Entry", pricer: "Pricer", permits: _Permits) -> "Change | None":
    """Return what a line changes; None where the row is what the line says already."""
    from usage_ledger.ledger import closing, corrections

    record = entry.record
    try:
        counts = corrections.with_counts(record, line.counts)
    except ValueError as error:
        raise LineError(str(error)) from error
    is_so = all(getattr(record, name) == count for name, count in counts.items())
    if is_so and not (line.confirms and record.requires_manual_review):
        return None
    for name, cell in line.exported.items():
        now = getattr(record, name)
        if not _is_same(name, cell, now):
            raise LineError(f"the row has changed since it was exported: {name} is {now} now")
    if record.usage_state == "pending":
        raise LineError("the request is still in flight")
    if permits.closed_until is not None and record.occurred_at < permits.closed_until:
        raise LineError(f"the row is of {closing.describe(permits.closed_until)}; --reopen changes it all the same")
    settled = record.usage_state in ("complete", "none") and not record.requires_manual_review
    if settled and not corrections.is_corrected(record) and not permits.force:
        raise LineError(f"the row is {record.usage_state} as upstream told it; --force changes it all the same")
    if corrections.is_corrected(record) and not permits.force and not line.confirms and "metadata" not in line.exported:
        raise LineError(
            "the row was corrected by hand before, and without an export's metadata column nothing says that the file "
            "knows of it; --force changes it all the same"
        )
    return corrections.correction(entry, counts, line.note or "backfilled", pricer.give)


def _is_same(name: str, cell: str, now: object) -> bool:
    """Whether a cell of an export is what its row says now; spreadsheets write amounts in their own way."""
    text = "" if now is None else str(now)
    if cell == text or name != "total_cost":
        return cell == text
    try:
        return Decimal(cell) == as_amount(now)
    except ArithmeticError:
        return False


def _report(changes: list["Change"], lines: int, dry_run: bool) -> None:
    out = for_people()
    for change in changes:
        before, after = change.expected, change.after
        told = ", ".join(
            f"{name} {before[name]} → {after[name]}"
            for name in (*COUNT_COLUMNS, "total_tokens", "total_cost")
            if before[name] != after[name]
        )
        say(out, f"{change.record_id}: {told}")
    costs = [as_amount(change.after["total_cost"]) for change in changes]
    total = sum((cost for cost in costs if cost is not None), start=Decimal(0))
    out.write(
        f"{'would change' if dry_run else 'changed'} {len(changes):,} of {lines:,} row(s), which cost {as_text(total)} "
        f"USD now; {costs.count(None):,} without a price\n"
    )
