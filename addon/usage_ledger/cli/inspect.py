"""`usage-ledger inspect`: what a capture tells of each request's usage, and whether the ledger says the same.

Room: cli. Imports click, the flows room (which loads mitmproxy) where it runs, and the ledger's reading side. Promises
that captures of any size are read flow by flow, and that what can be read is shown before what cannot is told.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from usage_ledger.cli.options import named, with_ledgers
from usage_ledger.cli.output import for_people, for_programs, on_one_line, progress
from usage_ledger.cli.table import terminal_width
from usage_ledger.ledger.paths import ENVIRONMENT
from usage_ledger.ledger.reading import Reader, open_for_reading

if TYPE_CHECKING:
    from usage_ledger.flows.inspecting import Inspection


PROBLEMS_TOLD = 5


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@with_ledgers
@click.option("--flow", "wanted", metavar="ID", help="One flow: by its id in mitmproxy, its row's id, its request id.")
@click.option("--events", is_flag=True, help="Show every event, not only those that say something of usage.")
@click.option("--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True, help="How.")
def inspect(files: tuple[Path, ...], dbs: tuple[Path, ...], wanted: str | None, events: bool, form: str) -> None:
    """Show what captures tell of each metered request: how it ended, which events told usage, and the verdict.

    FILE is what mitmdump -w saved, or a HAR. Each flow is judged as a replay of it would be, with the reason in words,
    and compared with its row in the ledger: same, differs, or absent. Nothing is written. Of a damaged file all that
    can be read is shown, then what is wrong. Prompts and completions are not shown.

    \b
    Examples:
      usage-ledger inspect capture.mitm
      usage-ledger inspect capture.mitm --flow 661057e494c57-480f7dc21dd8 --events
      usage-ledger inspect capture.mitm --format json | jq '.[] | select(.ledger.state != "same")'
    """
    shown = _Shown()
    with ExitStack() as opened:
        ledger = opened.enter_context(open_for_reading(*dbs)) if _is_there(dbs) else None
        found = _found(files, wanted, events, shown)
        if form == "json":
            _write_json(found, ledger, for_programs())
        else:
            _write_text(found, ledger, for_people())
    if ledger is None and shown.flows:
        click.echo(f"there is no ledger at {named(dbs)}, so nothing is compared; name one with --db", err=True)
    if shown.others and wanted is None:
        click.echo(f"{shown.others:,} other flow(s) are not metered", err=True)
    if shown.problems:
        more = shown.problems_in_all - len(shown.problems)
        raise click.ClickException("; ".join(shown.problems) + (f"; and {more:,} more" if more else ""))
    if wanted is not None and not shown.flows:
        raise click.ClickException(f"there is no metered flow {wanted!r} in {named(files)}")


class _Shown:
    """What became of the flows in the files."""

    def __init__(self) -> None:
        self.flows = 0
        self.others = 0
        self.problems: list[str] = []
        self.problems_in_all = 0

    def add(self, problem: Exception) -> None:
        """Note what cannot be read; of many such places the first few are told."""
        self.problems_in_all += 1
        if len(self.problems) < PROBLEMS_TOLD:
            self.problems.append(str(problem))


def _is_there(dbs: tuple[Path, ...]) -> bool:
    """Whether there is a ledger to compare with. One that somebody has named has to be there."""
    source = click.get_current_context().get_parameter_source("dbs")
    is_named = source is not click.core.ParameterSource.DEFAULT or bool(os.environ.get(ENVIRONMENT))
    return is_named or dbs[0].exists()


def _found(files: tuple[Path, ...], wanted: str | None, events: bool, shown: _Shown) -> Iterator["Inspection"]:
    from usage_ledger.flows.files import CaptureError, judging, saved_flows
    from usage_ledger.flows.inspecting import ids_of, inspect
    from usage_ledger.flows.metered import metered

    for path in files:
        try:
            with progress(f"reading {path.name}", lambda path=path: path.stat().st_size) as advance:  # type: ignore[misc]
                for saved in saved_flows(path, advance):
                    found = None
                    try:
                        with judging(path, saved):
                            flow = metered(saved)
                            if flow is None:
                                shown.others += 1
                            elif wanted is None or wanted in ids_of(flow):
                                found = inspect(flow, all_events=events)
                    except CaptureError as error:
                        shown.add(error)
                    if found is not None:
                        shown.flows += 1
                        yield found
        except CaptureError as error:
            shown.add(error)


def _write_text(found: Iterator["Inspection"], ledger: Reader | None, out: TextIO) -> None:
    from usage_ledger.flows.telling import lines_of

    for number, each in enumerate(found):
        out.write("\n" if number else "")
        row = f", row {each.entry.record.id}" if each.entry is not None else ""
        out.write(on_one_line(f"flow {each.flow_id}{row}", out.encoding) + "\n")
        for line in lines_of(each, terminal_width()):
            out.write(on_one_line(line, out.encoding) + "\n")
        for line in _ledger_lines(each, ledger):
            out.write(on_one_line(line, out.encoding) + "\n")


def _ledger_lines(found: "Inspection", ledger: Reader | None) -> Iterator[str]:
    told = _compared(found, ledger)
    if told is None:
        return
    mark = f" ({told['mark']})" if told["mark"] else ""
    other = "" if found.entry is None or told["row"] in (None, found.entry.record.id) else f", as row {told['row']}"
    why = ", for the capture does not hold the body" if not found.captured and told["state"] == "differs" else ""
    yield f"  ledger   {told['state']}{mark}{other}{why}"
    for name, differ in told["differences"].items():
        yield f"           {name}: {_shown(differ['ledger'])} there, {_shown(differ['capture'])} here"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _compared(found: "Inspection", ledger: Reader | None) -> dict[str, Any] | None:
    """Compare an inspection with the ledger; None where there is nothing to compare."""
    from usage_ledger.ledger.finding import differences, row_of

    if found.entry is None or ledger is None:
        return None
    row = row_of(ledger, found.entry)
    if row is None:
        return {"state": "absent", "row": None, "mark": None, "differences": {}}
    differ = differences(row, found.entry)
    return {
        "state": "differs" if differ else "same",
        "row": row.id,
        "mark": row.mark,
        "differences": {name: {"ledger": theirs, "capture": ours} for name, (theirs, ours) in differ.items()},
    }


def _write_json(found: Iterator["Inspection"], ledger: Reader | None, out: TextIO) -> None:
    import msgspec  # unlike json, it writes no NaN

    from usage_ledger.flows.inspecting import fields_of

    before = "[\n"
    for each in found:
        fields = {**fields_of(each), "ledger": _compared(each, ledger)}
        out.write(before + msgspec.json.encode(fields).decode())
        before = ",\n"
    out.write("[]\n" if before == "[\n" else "\n]\n")
