"""`usage-ledger import`: what upstream billed, from files of the Console or saved answers, into the ledger.

Room: cli. Imports click, the upstream room and the ledger.
"""

from pathlib import Path

import click

from usage_ledger.cli.options import with_ledger
from usage_ledger.cli.output import for_people, say


@click.command("import")
@with_ledger
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Where a file says something else than the ledger, take what it says.")
def import_(db: Path, files: tuple[Path, ...], replace: bool) -> None:
    """Import what upstream billed from files.

    FILE is a usage or cost export of the Console (CSV), or a saved answer of the Admin API (usage report, cost report,
    API keys; JSON); which, its content tells. Each is stored whole or not at all, and the same one twice changes
    nothing. One with other numbers than the ledger has for a day is refused, and both are shown.

    \b
    Examples:
      usage-ledger import claude_api_tokens_2026_11.csv claude_api_cost_2026_11.csv
      usage-ledger import usage-report.json
    """
    from usage_ledger.ledger.editing import open_for_editing
    from usage_ledger.ledger.marks import LedgerError
    from usage_ledger.upstream.answers import BillError
    from usage_ledger.upstream.importing import load_file

    out = for_people()
    with open_for_editing(db) as ledger:
        for path in files:
            try:
                kind, stored = load_file(ledger, path, replace)
            except BillError as error:
                raise click.ClickException(str(error)) from error
            except LedgerError as error:
                raise click.ClickException(f"{path}: {error}") from error
            say(
                out,
                f"{path}: {kind}, {stored.new:,} new, {stored.changed:,} changed, {stored.same:,} known "
                f"{'keys' if kind == 'keys' else 'buckets'}",
            )
