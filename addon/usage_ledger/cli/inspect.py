"""`usage-ledger inspect`: what a capture tells of each request's usage, and whether the ledger says the same.

Room: cli. Imports click, the flows room (which loads mitmproxy) where it runs, and the ledger's reading side. Promises
that captures of any size are read flow by flow, and that what can be read is shown before what cannot is told.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TextIO

import click

from usage_ledger.cli.options import named, with_filter, with_ledgers
from usage_ledger.cli.output import Problems, for_people, for_programs, on_one_line, progress
from usage_ledger.cli.table import terminal_width
from usage_ledger.ledger.paths import ENVIRONMENT, new_file
from usage_ledger.ledger.reading import Reader, open_for_reading

if TYPE_CHECKING:
    from usage_ledger.flows.inspecting import Inspection
    from usage_ledger.flows.metered import RequestFilter


BEGINNING = 8
"""The fewest characters that --flow takes for the beginning of an id."""


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@with_ledgers
@click.option(
    "--flow",
    "wanted",
    metavar="ID",
    help="One flow, by its id in mitmproxy, its row's or its request's, or how that begins.",
)
@with_filter
@click.option("--events", is_flag=True, help="Show every event, not only those that say something of usage.")
@click.option("--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True, help="How.")
@click.option(
    "--save",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Save the flows that are shown, as they are, as the new capture OUT.",
)
def inspect(
    files: tuple[Path, ...],
    dbs: tuple[Path, ...],
    wanted: str | None,
    chosen: "RequestFilter | None",
    events: bool,
    form: str,
    save: Path | None,
) -> int:
    """Show what captures tell of each metered request: how it ended, which events told usage, and the verdict.

    FILE is what mitmdump -w saved, or a HAR. Each flow is judged as a replay of it would be, with the reason in words,
    and compared with its row in the ledger: same, differs, or absent. Of a damaged file all that can be read is shown,
    then what is wrong. Prompts and completions are not shown.

    mitmdump -nr ends at the first damage. --save makes a capture of what can be read, for it to replay; or of one flow.
    It holds keys and prompts, as FILE does.

    Exit code 0: all was read; 1: a part of it could not be; 2: there is nothing to show.

    \b
    Examples:
      usage-ledger inspect capture.mitm
      usage-ledger inspect capture.mitm --flow 661057e494c57-480f7dc21dd8 --events
      usage-ledger inspect damaged.mitm --save readable.mitm
      usage-ledger inspect capture.mitm --format json | jq '.[] | select(.ledger.state == "differs")'
    """
    if wanted is not None and len(wanted) < BEGINNING:
        raise click.UsageError(
            f"--flow {wanted!r} is too short to tell flows apart; give {BEGINNING} characters or more"
        )
    asked = _Asked(wanted, chosen, events)
    shown = _Shown()
    with ExitStack() as opened:
        ledger = opened.enter_context(open_for_reading(*dbs)) if _is_there(dbs) else None
        copy = None if save is None else opened.enter_context(opened.enter_context(new_file(save)).open("wb"))
        found = _found(files, asked, shown, copy)
        if form == "json":
            _write_json(found, ledger, shown, for_programs())
        else:
            _write_text(found, ledger, len(files) > 1, for_people())
        if wanted is not None and not shown.flows:
            shown.problems.add(f"there is no metered flow {wanted!r} in {named(files)}")
        if shown.others and wanted is None:
            click.echo(f"{shown.others:,} other flow(s) are not metered", err=True)
        if not shown.flows and (shown.problems.told or save is not None):
            told = shown.problems.told or f"{named(files)} has no flow of a metered request"
            raise click.ClickException(told if save is None else f"{told}; nothing is written")
    if save is not None:
        click.echo(f"{on_one_line(str(save))}: {shown.flows:,} flow(s), with their keys and prompts", err=True)
    if shown.is_ambiguous:
        click.echo(f"{wanted!r} begins the ids of several flows; all of them are shown", err=True)
    if ledger is None and shown.flows:
        click.echo(f"there is no ledger at {named(dbs)}, so nothing is compared; name one with --db", err=True)
    if told := shown.problems.told:
        hint = "; --save OUT makes a capture of what can be" if shown.is_damaged and save is None else ""
        click.echo(f"usage-ledger: {on_one_line(told)}{hint}", err=True)
        return 1
    return 0


class _Asked(NamedTuple):
    """Which flows are asked for, and whether all of their events are."""

    wanted: str | None
    chosen: "RequestFilter | None"
    events: bool


class _Shown:
    """What became of the flows in the files.

    `is_ambiguous`: several ids begin with what one flow was asked for by. `is_damaged`: a file was read in part.
    """

    def __init__(self) -> None:
        self.flows = 0
        self.others = 0
        self.problems = Problems()
        self.is_ambiguous = False
        self.is_damaged = False
        self._id: str | None = None

    def is_wanted(self, wanted: str | None, ids: Callable[[], set[str]]) -> bool:
        """Whether a flow of these ids is asked for."""
        if wanted is None:
            return True
        found = min((each for each in ids() if each.startswith(wanted)), default=None)
        if found is not None:
            self.is_ambiguous |= self._id not in (None, found)
            self._id = found
        return found is not None


def _is_there(dbs: tuple[Path, ...]) -> bool:
    """Whether there is a ledger to compare with. One that somebody has named has to be there."""
    source = click.get_current_context().get_parameter_source("dbs")
    is_named = source is not click.core.ParameterSource.DEFAULT or bool(os.environ.get(ENVIRONMENT))
    return is_named or dbs[0].exists()


def _found(
    files: tuple[Path, ...], asked: _Asked, shown: _Shown, copy: BinaryIO | None
) -> Iterator[tuple[Path, "Inspection"]]:
    from usage_ledger.flows.files import CaptureError, as_saved, judging, saved_flows
    from usage_ledger.flows.inspecting import ids_of, inspect
    from usage_ledger.flows.metered import metered

    for path in files:
        is_begun = False
        try:
            with progress(f"reading {path.name}", lambda path=path: path.stat().st_size) as advance:  # type: ignore[misc]
                for saved in saved_flows(path, advance):
                    found, is_begun = None, True
                    try:
                        with judging(path, saved):
                            flow = metered(saved, asked.chosen)
                            if flow is None:
                                shown.others += 1
                            elif shown.is_wanted(asked.wanted, partial(ids_of, flow)):
                                content = b"" if copy is None else as_saved(flow)
                                found = inspect(flow, all_events=asked.events)
                    except CaptureError as error:
                        shown.problems.add(str(error))
                    if found is not None:
                        shown.flows += 1
                        if copy is not None:
                            copy.write(content)
                        yield path, found
        except CaptureError as error:
            shown.problems.add(str(error))
            shown.is_damaged |= is_begun


def _write_text(
    found: Iterator[tuple[Path, "Inspection"]], ledger: Reader | None, with_files: bool, out: TextIO
) -> None:
    from usage_ledger.flows.telling import ledger_lines, lines_of

    for number, (path, each) in enumerate(found):
        row = f", row {each.entry.record.id}" if each.entry is not None else ""
        file = f", in {path}" if with_files else ""
        lines = [f"flow {each.flow_id}{row}{file}", *lines_of(each, terminal_width())]
        told = _compared(each, ledger)
        if told.row is not None or told.state == ABSENT:
            lines += ledger_lines(each, *told)
        out.write("\n" if number else "")
        out.writelines(on_one_line(line, out.encoding) + "\n" for line in lines)


ABSENT = "absent"


class _Compared(NamedTuple):
    """What the ledger has of a flow: the `row` that a replay would find, how it is marked, and the columns that differ.

    `state` is `same`, `differs` or `absent`; `leaves no row` or `not compared` where there is nothing to compare.
    """

    state: str
    row: str | None = None
    mark: str | None = None
    differences: dict[str, tuple[Any, Any]] = {}  # noqa: RUF012 - never changed


def _compared(found: "Inspection", ledger: Reader | None) -> _Compared:
    from usage_ledger.ledger.finding import differences, row_of

    if found.entry is None:
        return _Compared("leaves no row")
    if ledger is None:
        return _Compared("not compared")
    row = row_of(ledger, found.entry)
    if row is None:
        return _Compared(ABSENT)
    differ = differences(row, found.entry)
    return _Compared("differs" if differ else "same", row.id, row.mark, differ)


def _write_json(found: Iterator[tuple[Path, "Inspection"]], ledger: Reader | None, shown: _Shown, out: TextIO) -> None:
    """Write one JSON array; nothing at all where nothing can be read."""
    import msgspec  # unlike json, it writes no NaN

    from usage_ledger.flows.inspecting import fields_of

    before = "[\n"
    for path, each in found:
        told = _compared(each, ledger)
        differ = {name: {"ledger": theirs, "capture": ours} for name, (theirs, ours) in told.differences.items()}
        fields = {"file": str(path), **fields_of(each), "ledger": {**told._asdict(), "differences": differ}}
        out.write(before + _UNSEEN.sub(_escaped, msgspec.json.encode(fields).decode()))
        before = ",\n"
    if before != "[\n":
        out.write("\n]\n")
    elif not shown.problems.told:
        out.write("[]\n")


_UNSEEN = re.compile(r"[^ -~]")


def _escaped(found: re.Match[str]) -> str:
    """Escape a character of JSON that does more than be seen, such as one that turns the direction of a line."""
    character = found[0]
    return character if character.isprintable() else json.dumps(character)[1:-1]
