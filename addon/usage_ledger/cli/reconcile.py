"""`usage-ledger reconcile`: the rows against the bill, and a name for every difference.

Room: cli. Imports click, the upstream room and the ledger.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from usage_ledger.cli.changes import with_reopen
from usage_ledger.cli.options import Moment, Names, Span, own_pricer, with_ledgers, with_note, with_prices
from usage_ledger.cli.output import FOUND, for_people, for_programs, say
from usage_ledger.cli.spreadsheets import safe
from usage_ledger.cli.table import Column, write_table
from usage_ledger.ledger.moments import now
from usage_ledger.ledger.money import as_text
from usage_ledger.ledger.reading import may_be_written, open_for_reading

if TYPE_CHECKING:
    from usage_ledger.upstream.reconcile import Bucket, Result

_BY = ("day", "model", "key", "workspace")


@click.command()
@with_ledgers
@click.option("--since", type=Moment(past=True), required=True, help="From this day on: 2026-11-01, 7d (UTC).")
@click.option("--until", type=Moment(), help="Before this day (UTC). Default: now.")
@click.option(
    "--by",
    type=Names("dimension", _BY),
    default="day,model",
    show_default=True,
    metavar="NAME[,NAME]...",
    help=f"What to compare by: {', '.join(_BY)}.",
)
@click.option(
    "--tolerance", type=click.IntRange(0), default=0, show_default=True, help="Tokens of one kind that may differ."
)
@click.option("--open", "takes_open", is_flag=True, help="Compare days that are still open too, as far as they go.")
@click.option("--apply", "applies", is_flag=True, help="Fill in flagged rows that alone explain a difference.")
@click.option("--margin", type=Span(), default="60s", show_default=True, help="How far upstream's clock may be off.")
@click.option(
    "--proposals", type=click.Path(path_type=Path), metavar="FILE", help="List what several rows could explain."
)
@click.option("--adjust", "adjusts", is_flag=True, help="Close what is left with adjustments, which are no requests.")
@with_note
@with_prices
@with_reopen
@click.option("--dry-run", is_flag=True, help="Only say what would be filled in and adjusted.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "csv", "json")),
    default="table",
    show_default=True,
    help="The form.",
)
def reconcile(
    dbs: tuple[Path, ...],
    since: str,
    until: str | None,
    by: tuple[str, ...],
    tolerance: int,
    takes_open: bool,
    applies: bool,
    margin: timedelta,
    proposals: Path | None,
    adjusts: bool,
    note: str,
    price_path: str | None,
    reopen: bool,
    dry_run: bool,
    form: str,
) -> int:
    """Compare the rows with what upstream billed, for whole UTC days.

    Tokens come first, by kind; money is compared where they agree, so that a price is told from a lost request. Models
    are compared without the date in their name. Rows of subscriptions are on no bill and left out, and so are days
    that are still open (fetched within 10 minutes of their end) or have no bill; that is said. Fetch or import the
    bill first; of several ledgers, that of the first counts. The result is kept in the ledger, for close.

    With --apply, a flagged row that alone explains a difference gets it, as backfill would do it. Alone means that no
    other flagged row could be it, whichever instant from its start to its end upstream bills by, with --margin around
    both; hours or minutes (fetch --width) tell more than days. Where several rows could, nothing is forced: --proposals
    lists them, and --adjust closes what is left.

    Exit code 0: all is explained; 1: something is left; 2: it could not be compared.

    \b
    Examples:
      usage-ledger reconcile --since 2026-11-01 --until 2026-12-01
      usage-ledger reconcile --since 7d --by day,model,key
      usage-ledger reconcile --since 2026-11-01 --until 2026-12-01 --apply --proposals open.csv --dry-run
      usage-ledger reconcile --since 2026-11-01 --until 2026-12-01 --adjust --note "invoice 7"
    """
    from usage_ledger.cli import settle
    from usage_ledger.ledger.closing import archived_before
    from usage_ledger.upstream import results
    from usage_ledger.upstream.answers import BillError
    from usage_ledger.upstream.reconcile import reconcile as compare

    if len(dbs) > 1 and (applies or adjusts):
        raise click.UsageError("--apply and --adjust change one ledger; name one")
    if applies and adjusts and dry_run:
        raise click.UsageError("what --adjust does depends on what --apply does; try them one by one")
    end = until or now()
    try:
        how = settle.How(since, end, takes_open, note, reopen, dry_run)
        if proposals is not None:
            settle.propose(dbs, how, margin, proposals)
        if applies:
            settle.fill_in(dbs[0], how, margin, own_pricer(price_path, dbs[0]))
        if adjusts:
            settle.adjust(dbs[0], how)
        with open_for_reading(*dbs) as ledger:
            result = compare(ledger, since, end, by, tolerance, takes_open)
            archived = archived_before(ledger)
    except BillError as error:
        raise click.ClickException(str(error)) from error
    told = results.as_json(result)
    if len(dbs) == 1 and not dry_run:
        _keep(dbs[0], result, json.dumps(told))
    code = int(result.left > 0)
    click.get_current_context().meta[FOUND] = code
    if form == "csv":
        lines = csv.writer(for_programs(), lineterminator="\r\n")
        lines.writerows([safe(cell) for cell in line] for line in results.lines(told, result.by))
    elif form == "json":
        for_programs().write(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    else:
        _write_table(result, for_people())
    if archived is not None and since < archived and len(dbs) == 1:
        click.echo(f"rows before {archived[:10]} are archived; name the archive with --db as well", err=True)
    _tell_left_out(result)
    return code


def _tell_left_out(result: "Result") -> None:
    """Say which days are in no bucket."""
    if result.days_not_billed:
        click.echo(f"{len(result.days_not_billed)} day(s) with rows have no bill; fetch it, or import it", err=True)
    for days, what in ((result.open_days, "still open"), (result.days_without_bill, "without a bill")):
        if days:
            click.echo(f"left out: {len(days)} day(s) {what}: {_days(days)}", err=True)


def _keep(db: Path, result: "Result", told: str) -> None:
    """Keep a result in the ledger, where it can be written."""
    from usage_ledger.ledger.editing import open_for_editing
    from usage_ledger.ledger.reconciliations import note_reconciliation

    if may_be_written(db):
        with open_for_editing(db) as editor:
            note_reconciliation(editor, result.since, result.until, result.by, result.left, told)


def _days(days: list[str]) -> str:
    return ", ".join(days) if len(days) < 8 else f"{', '.join(days[:3])}, ... {days[-1]}"


def _write_table(result: "Result", out: TextIO) -> None:
    from usage_ledger.upstream.verdicts import MEANING, SETTLED, Verdict

    columns = [
        *(Column(name, to_the_right=False) for name in result.by),
        Column("requests", rank=3),
        Column("kind", to_the_right=False, rank=0),
        Column("ours", rank=1),
        Column("theirs", rank=1),
        Column("difference", rank=1),
        Column("verdict", to_the_right=False, rank=0),
    ]
    lines, marked = list[list[str]](), set[int]()
    for bucket in result.buckets:
        told = list(_lines_of(bucket))
        if bucket.verdict not in SETTLED:
            marked |= set(range(len(lines), len(lines) + len(told)))
        lines += told
    write_table(columns, lines, out, is_marked=lambda number: number in marked)
    for each in result.money:
        if each.verdict is Verdict.PRICE:
            sides = f"{as_text(each.ours)} USD by our prices, {as_text(each.theirs)} USD billed"
            say(out, f"price differs: {each.day} {each.model}: {sides}")
    counts = Counter([one.verdict for one in result.buckets] + [one.verdict for one in result.money])
    out.write("\n")
    for found, count in counts.most_common():
        meaning = f": {MEANING[found]}" if found in MEANING else ""
        out.write(f"{count:>6,}  {found}{meaning}\n")


def _lines_of(bucket: "Bucket") -> Iterator[list[str]]:
    """Yield the lines of a bucket: one where it matches, else one for each kind that differs."""
    from usage_ledger.upstream.kinds import short
    from usage_ledger.upstream.results import kinds_of
    from usage_ledger.upstream.verdicts import Verdict

    before = [*bucket.keys, f"{bucket.requests:,}"]
    if bucket.verdict is Verdict.MATCHES:
        total = f"{sum(bucket.theirs.values()):,}"
        yield [*before, "all", total, total, "0", str(bucket.verdict)]
        return
    is_flagged = bucket.verdict is Verdict.FLAGGED
    verdict = f"ours short, {bucket.flagged:,} flagged" if is_flagged else str(bucket.verdict)
    for kind in kinds_of(bucket):
        if kind["difference"] or bucket.verdict in (Verdict.BATCH, Verdict.UNKNOWN):
            numbers = [f"{kind['ours']:,}", f"{kind['theirs']:,}", f"{kind['difference']:+,}"]
            yield [*before, short(kind["kind"]), *numbers, verdict]
