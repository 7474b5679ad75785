"""Histories of a fleet, chosen by chance: whatever the order of things, no row is lost, doubled or made worse.

Two proxies and a desk push and pull; rows get better and are priced anew, people correct them at the desk, at a proxy
and by SQL in the books. After each step the books are held against what they were; in the end everybody agrees.
"""

import json
import random
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from usage_ledger.cli.main import main

from scripts.real_postgres import query
from scripts.real_proxy import rows_of
from tests.fleet.conftest import fill, record

RANKS = {"complete": 4, "none": 3, "partial": 2, "missing": 1}
STATES = ("missing", "partial", "none", "complete")
ROWS = 6
STEPS = ("improve", "improve", "push", "push", "pull", "correct", "accept", "price", "by_sql")


class Fleet:
    def __init__(self, folder: Path, dsn: str, seed: int) -> None:
        self.dsn = dsn
        self.chance = random.Random(seed)
        self.ledgers = {name: folder / f"{name}.db" for name in ("web-1", "web-2", "desk")}
        self.books: dict[str, int] = {}
        self.preferred: set[str] = set()
        for path in self.ledgers.values():
            fill(path)

    def run(self, *arguments: object, codes: tuple[int, ...] = (0,)) -> str:
        result = CliRunner().invoke(main, [str(each) for each in arguments], standalone_mode=False)
        code = result.return_value if isinstance(result.return_value, int) else 0
        told = str(result.exception)
        assert result.exception is None or "no row" in told or "there are no books" in told, (arguments, told)
        assert code in codes, (arguments, result.output)
        return result.output

    def step(self) -> None:
        getattr(self, self.chance.choice(STEPS))()
        self.look()

    def improve(self) -> None:
        """A row comes to a proxy, or gets better there."""
        number, state = self.chance.randrange(ROWS), self.chance.choice(STATES)
        tokens = {"none": 0, "missing": 0}.get(state, self.chance.randint(1, 99))
        flagged = state in ("missing", "partial")
        name = self.chance.choice(("web-1", "web-2"))
        usage = json.dumps({"input_tokens": tokens, "output_tokens": 0}) if tokens else None
        flags: dict[str, object] = {"_requires_manual_review": True} if flagged else {}
        flags |= {"missing": {"_no_usage_data": True}, "partial": {"_partial_usage": True}}.get(state, {})
        one = record(
            number,
            usage_state=state,
            input_tokens=tokens,
            output_tokens=0,
            total_tokens=tokens,
            usage_raw=usage,
            requires_manual_review=int(flagged),
            review_reason="client_disconnected" if flagged else None,
            metadata=json.dumps(flags),
            total_cost="0" if state == "none" else None,
            stop_reason="end_turn" if state == "complete" else None,
            http_status=429 if state == "none" else 200,
        )
        fill(self.ledgers[name], one)

    def push(self) -> None:
        name = self.chance.choice(list(self.ledgers))
        self.run("push", self.dsn, "--db", self.ledgers[name], "--source", name, codes=(0, 1))

    def pull(self) -> None:
        name = self.chance.choice(list(self.ledgers))
        prefer = self.chance.choice(("report", "report", "ours", "theirs"))
        told = self.run("pull", self.dsn, "--db", self.ledgers[name], codes=(0, 1))
        if prefer != "report":
            self.run("pull", self.dsn, "--db", self.ledgers[name], "--prefer", prefer)
        if prefer == "ours":  # somebody may prefer what is worth less
            self.preferred |= set(re.findall(r"row (\S+) was changed here and in the books", told))

    def somebody(self) -> tuple[Path, str] | None:
        path = self.ledgers[self.chance.choice(list(self.ledgers))]
        ids = [row["id"] for row in rows_of(path) if row["requires_manual_review"]]
        return (path, self.chance.choice(ids)) if ids else None

    def correct(self) -> None:
        if chosen := self.somebody():
            counts = ("--input-tokens", self.chance.randint(1000, 9999), "--output-tokens", 1)
            self.run("backfill", "--id", chosen[1], *counts, "--note", "x", "--db", chosen[0])

    def accept(self) -> None:
        if chosen := self.somebody():
            self.run("review", "accept", chosen[1], "--note", "x", "--db", chosen[0])

    def price(self) -> None:
        path = self.ledgers[self.chance.choice(list(self.ledgers))]
        prices = path.with_suffix(".toml")
        names = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
        amount = self.chance.randint(1, 99)
        prices.write_text('[[price]]\nmodel = "*"\n' + "".join(f"{name} = {amount}\n" for name in names))
        self.run("price", "--prices", prices, "--since", "2026-01-01", "--db", path)

    def by_sql(self) -> None:
        if self.books:
            tokens = self.chance.randint(10_000, 99_999)
            query(
                self.dsn,
                "UPDATE usage_records SET input_tokens = %s, output_tokens = 1, total_tokens = %s, "
                """metadata = metadata || '{"_manually_updated": true}'::jsonb WHERE id = %s""",
                [tokens, tokens + 1, self.chance.choice(list(self.books))],
            )

    def look(self) -> None:
        """Hold the books against what they were: no row has gone, and none is worth less than it was."""
        if not query(self.dsn, "SELECT to_regclass('usage_records')")[0][0]:
            return
        found = query(
            self.dsn, "SELECT id, usage_state, metadata, input_tokens, edited_at IS NOT NULL FROM usage_records"
        )
        assert len({row[0] for row in found}) == len(found)
        now = {row[0]: 5 if "_manually_updated" in row[2] else RANKS[row[1]] for row in found}
        for row_id, rank in self.books.items():
            assert now[row_id] >= rank or row_id in self.preferred, row_id
        self.books = now

    def settle(self) -> None:
        """Let everybody have everything; whose word stands where two were given is the books'."""
        for name, path in self.ledgers.items():
            self.run("push", self.dsn, "--db", path, "--source", name, codes=(0, 1))
        for _ in range(2):
            for name, path in self.ledgers.items():
                self.run("pull", self.dsn, "--db", path, "--prefer", "theirs")
                self.run("push", self.dsn, "--db", path, "--source", name, codes=(0, 1))
                self.look()


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_in_the_end_everybody_agrees(
    tmp_path: Path, dsn: str, seed: int, sized: Callable[[int, int], int]
) -> None:
    fleet = Fleet(tmp_path, dsn, seed)
    for _ in range(sized(40, 400)):
        fleet.step()
    fleet.settle()
    columns = "id, usage_state, input_tokens, total_tokens, requires_manual_review"
    books = query(dsn, f"SELECT {columns}, total_cost::text FROM usage_records ORDER BY id")
    for name, path in fleet.ledgers.items():
        with closing(sqlite3.connect(path)) as ledger:
            here = ledger.execute(f"SELECT {columns}, total_cost FROM usage_records ORDER BY id").fetchall()
        assert here == books, name
        assert "all is well" in fleet.run("verify", "--db", path), name
