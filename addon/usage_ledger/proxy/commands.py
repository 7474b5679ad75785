"""Commands: what a person can ask at the prompt of mitmproxy and mitmweb.

Room: proxy. Imports mitmproxy, the flows room, the ledger's reading side and its neighbours in this room. Commands
read, once, when asked; rows of requests that have just ended may not be there yet. Flows that are damaged are named in
the log, and have no row.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from typing import Any

from mitmproxy import command, ctx, exceptions, flow, flowfilter, http, types

from usage_ledger.flows import rows
from usage_ledger.flows.metered import metered
from usage_ledger.flows.replay import judge
from usage_ledger.ledger.columns import TOTALLED
from usage_ledger.ledger.finding import row_of
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.paths import ledger_path
from usage_ledger.ledger.reading import Reader, open_for_reading
from usage_ledger.proxy.marks import FLAGGED_FILTER

_log = logging.getLogger("usage_ledger")

_ALL: Sequence[flow.Flow] = []
"""Stands for all flows, where none are named."""

_COLUMNS = (
    "id",
    "occurred_at",
    "model",
    *TOTALLED,
    "usage_state",
    "requires_manual_review",
    "review_reason",
    "total_cost",
)
_HEADINGS = ["input", "output", "cache write", "cache read"]


@dataclasses.dataclass
class _Sum:
    """What rows add up to: tokens by `TOTALLED`, USD, and the rows that have no cost."""

    requests: int = 0
    flagged: int = 0
    tokens: list[int] = dataclasses.field(default_factory=lambda: [0] * len(TOTALLED))
    cost: Decimal = Decimal(0)
    without_cost: int = 0

    def add(self, row: dict[str, Any]) -> None:
        cost = _cost(row["total_cost"])
        self.requests += 1
        self.flagged += bool(row["requires_manual_review"])
        self.tokens = [sum(pair) for pair in zip(self.tokens, (row[name] for name in TOTALLED), strict=True)]
        self.cost += cost or 0
        self.without_cost += cost is None

    def cells(self) -> list[str]:
        return [str(cell) for cell in (self.requests, self.flagged, *self.tokens, self.cost, self.without_cost)]


class UsageCommands:
    """The commands `usage.summary`, `usage.rows` and `usage.flagged`."""

    name = "usage_commands"

    @command.command("usage.summary")
    def summary(self, flows: Sequence[flow.Flow] = _ALL) -> types.Data:
        """Add up the rows of these flows, or of all, by model."""
        models: dict[str, _Sum] = {}
        total = _Sum()
        for row in _rows_of(flows):
            models.setdefault(row["model"], _Sum()).add(row)
            total.add(row)
        heading = ["model", "requests", "flagged", *_HEADINGS, "USD", "without cost"]
        lines = [[name, *each.cells()] for name, each in sorted(models.items())]
        return [heading, *lines, ["total", *total.cells()]]  # type: ignore[return-value]  # Data is lists of text

    @command.command("usage.rows")
    def rows(self, flows: Sequence[flow.Flow] = _ALL) -> types.Data:
        """Show the rows of these flows, or of all, oldest first."""
        lines = [["time (UTC)", "model", *_HEADINGS, "state", "reason", "USD", "id"]]
        for row in _rows_of(flows):
            values = (row["occurred_at"], row["model"], *(row[name] for name in TOTALLED))
            values += (row["usage_state"], row["review_reason"] or "", row["total_cost"] or "", row["id"])
            lines.append([str(value) for value in values])
        return lines  # type: ignore[return-value]  # as above

    @command.command("usage.flagged")
    def flagged(self) -> types.Data:
        """Show only the flagged ones of the flows that are shown; again: show what was shown before."""
        _all_flows()
        # A person's own filter stays in force: filters that stand side by side have to match both.
        shown = ctx.options.view_filter or ""
        own = shown.removesuffix(FLAGGED_FILTER).strip()
        is_on = shown.endswith(FLAGGED_FILTER)
        only_flagged = f"{own} {FLAGGED_FILTER}".lstrip()
        ctx.options.view_filter = (own or None) if is_on else only_flagged
        count = len(ctx.master.commands.call("view.flows.resolve", only_flagged))
        before = f"the view filter is {own} again" if own else "all flows are shown"
        return [[f"{count} flagged; {before if is_on else 'only these are shown'}"]]  # type: ignore[return-value]  # as above


def _all_flows() -> Sequence[flow.Flow]:
    if "view.flows.resolve" not in ctx.master.commands.commands:
        raise exceptions.CommandError("there is no list of flows here: mitmproxy and mitmweb have one")
    found: Sequence[flow.Flow] = ctx.master.commands.call("view.flows.resolve", "@all")
    return found


def _rows_of(flows: Sequence[flow.Flow]) -> list[dict[str, Any]]:
    """Return the rows that the ledger has of these flows, oldest first, each once."""
    chosen = [each for each in (_all_flows() if flows is _ALL else flows) if isinstance(each, http.HTTPFlow)]
    try:
        with open_for_reading(ledger_path(ctx.options.usage_db)) as ledger:
            ids: dict[str, http.HTTPFlow] = {}
            for each in chosen:
                with _naming(each):
                    ids[rows.record_id(each)] = each
            found = ledger.having("id", list(ids), _COLUMNS)
            there = {row[0] for row in found}
            missing = [each for row_id, each in ids.items() if row_id not in there]
            found += ledger.having("id", _other_ids(ledger, missing), _COLUMNS)
    except LedgerError as error:
        raise exceptions.CommandError(str(error)) from error
    unique = {row[0]: dict(zip(_COLUMNS, row, strict=True)) for row in found}
    return sorted(unique.values(), key=lambda row: (row["occurred_at"], row["id"]))


def _other_ids(ledger: Reader, flows: Sequence[http.HTTPFlow]) -> list[str]:
    """Return the ids of rows that flows have under another than their own, as those of a HAR do."""
    ids = []
    chosen = flowfilter.parse(ctx.options.usage_filter)
    for each in flows:
        judged = None
        with _naming(each):
            if metered(each, chosen) is not None:
                judged = judge(each)
        row = row_of(ledger, judged.entry) if judged is not None else None
        if row is not None:
            ids.append(row.id)
    return ids


@contextmanager
def _naming(http_flow: http.HTTPFlow) -> Iterator[None]:
    """Say which flow it is that holds what no flow can, and go on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - mitmproxy takes whatever stands in a capture
        _log.warning(f"usage ledger: flow {http_flow.id} is damaged ({error!r}), and has no row")


def _cost(text: Any) -> Decimal | None:
    try:
        return None if text is None else Decimal(text)
    except (InvalidOperation, TypeError):
        return None
