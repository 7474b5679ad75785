"""`usage-ledger review`: the queue of rows that want a person, one of them in full, and settling them as they are.

Room: cli. Imports click and the ledger. Promises that nothing secret is in what is meant for others.
"""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usage_ledger.cli.changes import make_changes, open_to_change, refuse_closed, with_reopen
from usage_ledger.cli.options import (
    Words,
    filters_from,
    named,
    own_pricer,
    with_filters,
    with_ledger,
    with_ledgers,
    with_needed_note,
    with_prices,
)
from usage_ledger.cli.output import for_people, on_one_line, say
from usage_ledger.cli.table import Column, shown_time, write_table
from usage_ledger.ledger.columns import COLUMNS, COUNT_COLUMNS, ITERATION_COLUMNS
from usage_ledger.ledger.filters import CAME_WITHOUT, FLAGGED, Filters
from usage_ledger.ledger.reading import Reader, open_for_reading

if TYPE_CHECKING:
    from usage_ledger.ledger.editing import Change

_ENDINGS = {
    "no_usage_data": "ended normally",
    "client_disconnected": "the client left",
    "upstream_closed": "upstream closed or reset the stream",
    "stream_error": "an error event in the stream",
    "no_response": "no response came",
    "proxy_stopped": "the proxy was stopped",
    "unreadable_body": "the body could not be decoded",
    "malformed_usage": "the usage was not valid",
    "multiple_messages": "several messages in one body",
}
"""How a request ended, in words."""


@click.group(invoke_without_command=True)
@with_ledgers
@with_filters
@click.option("-n", "--limit", type=click.IntRange(0), default=20, show_default=True, help="How many; 0: all.")
@click.pass_context
def review(context: click.Context, /, dbs: tuple[Path, ...], limit: int, **filters: Any) -> None:
    """Show the rows that want a person, oldest first, and how many there are for each reason.

    \b
    Examples:
      usage-ledger review
      usage-ledger review --since 7d --model 'claude-opus-*' -n 0
      usage-ledger review show 661057e494c57-480f7dc21dd8
      usage-ledger review accept --flagged --until 2026-11-01 --note "too old to look up" --dry-run
      usage-ledger review report > without-usage.txt
    """
    chosen = filters_from(filters)
    if context.invoked_subcommand is not None:
        if chosen != Filters():
            raise click.UsageError(f"filters stand after {context.invoked_subcommand}")
        return
    names = ("occurred_at", "model", "review_reason", "usage_state", "total_tokens", "request_id", "id")
    reasons: Counter[str] = Counter()
    shown: list[Any] = []
    with open_for_reading(*dbs) as ledger:
        for page in ledger.pages(chosen, FLAGGED, names, 500):
            for row in page:
                reasons[str(row[2])] += 1
                if not limit or len(shown) < limit:
                    shown.append(row)
    out = for_people()
    if not reasons:
        click.echo(f"nothing to review in {on_one_line(named(dbs))}", err=True)
        return
    columns = [
        Column("time (UTC)", to_the_right=False, rank=3),
        Column("model", to_the_right=False),
        Column("reason", to_the_right=False, rank=2),
        Column("state", to_the_right=False, rank=4),
        Column("tokens", rank=4),
        Column("request id", to_the_right=False, rank=5),
        Column("id", to_the_right=False, rank=1),
    ]
    lines = [[shown_time(row[0]), *("" if value is None else str(value) for value in row[1:])] for row in shown]
    write_table(columns, lines, out, is_marked=lambda _number: False)
    out.write("\n")
    for reason, count in reasons.most_common():
        say(out, f"{count:>8,}  {reason}")
    if sum(reasons.values()) > len(shown):
        click.echo(f"{len(shown):,} of {sum(reasons.values()):,} are shown; -n 0 shows all", err=True)


@review.command()
@with_ledgers
@click.argument("id_", metavar="ID", type=Words())
def show(dbs: tuple[Path, ...], id_: str) -> None:
    """Show one row: all its columns, its iterations, its history, and by what upstream knows it.

    \b
    Example:
      usage-ledger review show 661057e494c57-480f7dc21dd8
    """
    from usage_ledger.ledger import trail

    with open_for_reading(*dbs) as ledger:
        found = ledger.having("id", [id_], COLUMNS)
        if not found:
            raise click.ClickException(f"there is no row with the id {id_}")
        fields = dict(zip(COLUMNS, found[0], strict=True))
        names = ITERATION_COLUMNS[1:]  # but for the row's own id
        iterations = ledger.iterations([id_], names)
        history = trail.history(ledger, id_)
    out = for_people()

    for name, value in fields.items():
        if value is not None and value != "":
            say(out, f"{name:<30} {value}")
    if iterations:
        say(out)
        say(out, "iterations")
        for each in iterations:
            say(out, "  " + ", ".join(f"{name} {value}" for name, value in zip(names, each, strict=True) if value))
    if history:
        say(out)
        say(out, "history")
        for revised_at, revised_by, source, reason, before, after in history:
            say(out, f"  {revised_at} {revised_by} {source}: {reason}")
            for name, value in _changed(before, after):
                say(out, f"    {name}: {value}")
    say(out)
    say(out, "To look it up: " + (_known_upstream(fields) or "upstream named neither the request nor the message"))


def _changed(before: str, after: str) -> list[tuple[str, str]]:
    """What an entry of the trail changed, in words; another program may have broken its JSON."""
    try:
        old, new = json.loads(before), json.loads(after)
        return [(name, f"{old.get(name)} → {value}") for name, value in new.items() if old.get(name) != value]
    except (ValueError, AttributeError, RecursionError):
        return [("it cannot be read", f"{before} → {after}")]


def _known_upstream(fields: dict[str, Any]) -> str:
    names = ("request_id", "message_id", "organization_id", "workspace_id", "api_key_hint", "occurred_at")
    ids = [name for name in names[:2] if fields[name]]
    return ", ".join(f"{name} {fields[name]}" for name in names if fields[name]) if ids else ""


@review.command()
@with_ledger
@click.argument("ids", metavar="[ID]...", nargs=-1, type=Words())
@with_filters
@with_needed_note
@with_reopen
@click.option("--dry-run", is_flag=True, help="Only say which rows.")
def accept(db: Path, ids: tuple[str, ...], note: str, reopen: bool, dry_run: bool, **filters: Any) -> None:
    """Settle rows as they are: by their ids, or all flagged ones that the filters choose.

    They leave the queue and keep their counts. Should a replay know better, it still replaces them.

    \b
    Examples:
      usage-ledger review accept 661057e494c57-480f7dc21dd8 --note "a health check, never billed"
      usage-ledger review accept --state missing --until 2026-06-01 --note "before the books" --dry-run
    """
    chosen = filters_from(filters)
    if bool(ids) == (chosen != Filters()):
        raise click.UsageError("give ids, or filters (--flagged for all), and not both")
    accepted = []
    with open_to_change(db, dry_run) as ledger:
        if not ids:
            refuse_closed(ledger, chosen, FLAGGED, reopen)
        for changes in _acceptances(ledger, ids, chosen, note):
            made = make_changes(ledger, "review", changes, all_or_none=bool(ids), reopen=reopen)
            accepted += [(each.record_id, each.expected["review_reason"]) for each in changes if each.record_id in made]
    out = for_people()  # only now: a reader that has enough must not leave the half undone
    for record_id, reason in accepted:
        say(out, f"{record_id} {reason}")
    out.write(f"{'would accept' if dry_run else 'accepted'} {len(accepted):,} row(s)\n")


def _acceptances(ledger: Reader, ids: tuple[str, ...], chosen: Filters, note: str) -> Any:
    """The changes, a page at a time; of rows that are named, all in one."""
    from usage_ledger.ledger.corrections import acceptance
    from usage_ledger.ledger.entries import entries, entries_by

    if not ids:
        for page in entries(ledger, chosen, FLAGGED):
            yield [acceptance(entry.record, note) for entry in page]
        return
    found = {entry.record.id: entry.record for entry in entries_by(ledger, "id", ids)}
    changes: list[Change] = []
    for id_ in dict.fromkeys(ids):
        if id_ not in found:
            raise click.ClickException(f"there is no row with the id {id_}; no row is changed")
        if not found[id_].requires_manual_review:
            raise click.ClickException(f"row {id_} is not in the queue; no row is changed")
        changes.append(acceptance(found[id_], note))
    yield changes


@review.command()
@with_ledger
@click.argument("id_", metavar="ID", type=Words())
@with_needed_note
@with_prices
@with_reopen
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
def adopt(db: Path, id_: str, note: str, price_path: str | None, reopen: bool, dry_run: bool) -> None:
    """Give a row that was changed by plain SQL its revision.

    Its counts become a correction by hand, with their total and their cost, and the trail says what they were before.

    \b
    Example:
      usage-ledger review adopt 661057e494c57-480f7dc21dd8 --note "from the invoice, by SQL"
    """
    from usage_ledger.cli import audit
    from usage_ledger.ledger import trail
    from usage_ledger.ledger.corrections import correction, with_counts
    from usage_ledger.ledger.entries import entries_by
    from usage_ledger.ledger.record import fields_of

    pricer = own_pricer(price_path, db)
    with open_to_change(db, dry_run) as ledger:
        found = entries_by(ledger, "id", [id_])
        if not found:
            raise click.ClickException(f"there is no row with the id {id_}")
        (entry,) = found
        left = audit.folded(after for _, after in trail.afters(ledger, [id_]))
        if not audit.differences(entry, left):
            raise click.ClickException(
                f"row {id_} is what upstream and the trail say; there is nothing to adopt (costs are set by price)"
            )
        before, noted = audit.edited(entry, left)
        try:
            counts = with_counts(entry.record, fields_of(entry.record, COUNT_COLUMNS))
        except ValueError as error:
            raise click.ClickException(f"row {id_} cannot be adopted: {error}") from error
        change = correction(entry, counts, note, pricer.give)._replace(before=before, noted=noted)
        make_changes(ledger, "review", [change], all_or_none=True, reopen=reopen)
    out = for_people()
    verb = "would adopt" if dry_run else "adopted"
    changed = ", ".join(
        f"{name} {before[name]} → {counts[name]}" for name in COUNT_COLUMNS if before[name] != counts[name]
    )
    say(out, f"{verb} {id_}: {changed or 'no count changed'}")


@review.command()
@with_ledgers
@with_filters
def report(dbs: tuple[Path, ...], **filters: Any) -> None:
    """List the requests that came without usage, in a form to send to the upstream's support.

    It has no key, no prompt and no answer: only what upstream itself calls these requests, when they were, and how
    they ended.

    \b
    Example:
      usage-ledger review report --since 2026-11-01 > without-usage.txt
    """
    names = (
        *("request_id", "message_id", "occurred_at", "completed_at", "model", "http_status", "stream"),
        *("response_bytes", "review_reason", "organization_id", "workspace_id"),
    )
    count = 0
    out = for_people()
    with open_for_reading(*dbs) as ledger:
        for page in ledger.pages(filters_from(filters), CAME_WITHOUT, names, 500):
            for row in page:
                if not count:
                    out.write(
                        "These requests were answered without a usage object, so we cannot tell what was billed.\n"
                    )
                count += 1
                fields = dict(zip(names, row, strict=True))
                ending = _ENDINGS.get(str(fields.pop("review_reason")), "unknown")
                fields |= {"stream": "yes" if fields["stream"] else "no", "ended": ending}
                out.write("\n")
                for name, value in fields.items():
                    if value is not None:
                        say(out, f"{name:<16} {value}")
    if not count:
        click.echo(f"no request without usage in {on_one_line(named(dbs))}", err=True)
