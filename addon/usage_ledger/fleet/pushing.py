"""Pushing: from a ledger's outbox into the fleet's books.

Room: fleet. Imports psycopg, the ledger and its neighbours. A batch goes by COPY into a staging table and from there by
one statement into the books, in one transaction; only then is it acknowledged in the ledger. So a batch may go over the
wire twice and is stored once. Promises that a row is never replaced by one of a worse state, nor one that somebody has
edited there by a row that does not know of it, and that every change that is not taken is told and waits on.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import batched
from typing import Any, NamedTuple

from psycopg import errors, sql

from usage_ledger.fleet.exchange import common_trail
from usage_ledger.fleet.jsonb import mended
from usage_ledger.fleet.schema import ACCESS, Connection, make_partition
from usage_ledger.fleet.server import FleetError
from usage_ledger.ledger import revisions
from usage_ledger.ledger.columns import COLUMNS, ITERATION_COLUMNS, STATES
from usage_ledger.ledger.corrections import CORRECTED_AT
from usage_ledger.ledger.outbox import ADJUSTMENT_COLUMNS, Batch, Outbox
from usage_ledger.ledger.wire import NULL, SEPARATOR, line_of

BATCH = 5_000
"""Rows a transaction."""

_ROW = ", ".join(COLUMNS)


def _says(row: str, name: str) -> str:
    """SQL for whether a row's metadata says so; numbers count as they do in SQLite."""
    return f"coalesce({row}.metadata -> '{name}' IN ('true', '1'), false)"


def _by_a_person(row: str) -> str:
    return f"({_says(row, '_manually_updated')} OR {_says(row, '_accepted')})"


def _rank(row: str) -> str:
    """SQL for the worth of a row, as in `merging`: corrected > complete > none > partial > missing; accepted counts
    more than not accepted.
    """
    ranks = " ".join(f"WHEN '{state}' THEN {rank}" for rank, state in enumerate(STATES))
    return (
        f"CASE WHEN {_says(row, '_manually_updated')} THEN {2 * len(STATES)} ELSE {_says(row, '_accepted')}::int + 2 * "
        f"CASE {row}.usage_state {ranks} ELSE 0 END END"
    )


def worth(row: str) -> str:
    """SQL for the worth of a row, to compare, as `corrections.worth`: of two lower bounds the larger is worth more."""
    is_bound = f"{row}.usage_state = 'partial' AND NOT {_says(row, '_manually_updated')}"
    return f"ROW({_rank(row)}, CASE WHEN {is_bound} THEN {row}.total_tokens ELSE 0 END)"


def _all(row: str) -> str:
    """SQL for all that a row says, but for when somebody typed a correction: two who typed the same one agree."""
    fields = [f"{row}.{name}" for name in COLUMNS if name != "metadata"]
    metadata = (
        f"CASE jsonb_typeof({row}.metadata) WHEN 'object' THEN {row}.metadata - '{CORRECTED_AT}' "
        f"ELSE {row}.metadata END"
    )
    return f"ROW({', '.join(fields)}, {metadata})"


def _iterations(row: str, table: str) -> str:
    each = ", ".join(f"iteration.{name}" for name in ITERATION_COLUMNS)
    return f"(SELECT array_agg(ROW({each}) ORDER BY position) FROM {table} AS iteration WHERE record_id = {row}.id)"


def _differs(row: str) -> str:
    """SQL for whether a row to be stored, or its iterations, say something else than what is there, as `merging`
    asks it.
    """
    return (
        f"({_all(row)} IS DISTINCT FROM {_all('old')} OR "
        f"{_iterations(row, 'staged_iterations')} IS DISTINCT FROM {_iterations('old', 'usage_iterations')})"
    )


_BASE = "(SELECT base FROM staged WHERE staged.id = excluded.id)"
_SUCCEEDS = f"""
    ((old.edited_at IS NULL AND old.ledger = excluded.ledger AND {worth("excluded")} >= {worth("old")})
    OR old.version = {_BASE})
"""
"""The row there is an earlier one of this ledger's, or the one that this one was made from."""

_BETTER = f"(old.edited_at IS NULL AND {worth('excluded')} > {worth('old')})"

MERGE = f"""
    INSERT INTO usage_records AS old ({_ROW}, source, ledger)
    SELECT {_ROW}, %(source)s, %(ledger)s FROM staged ORDER BY id
    ON CONFLICT (id, occurred_at) DO UPDATE SET
        {", ".join(f"{name} = excluded.{name}" for name in COLUMNS if name not in ("id", "occurred_at"))},
        ledger = excluded.ledger, version = excluded.version, edited_at = NULL, edited_by = NULL
    WHERE {_differs("excluded")} AND ({_SUCCEEDS} OR {_BETTER})
    RETURNING id
"""
"""Store staged rows; those that are not better than what is there, nor made from it, change nothing."""

CONFLICTS = f"""
    SELECT staged.id FROM staged JOIN usage_records AS old USING (id, occurred_at)
    WHERE {_differs("staged")} AND (
        ({_by_a_person("staged")} OR base IS NOT NULL OR is_changed) AND {worth("staged")} >= {worth("old")}
        OR old.edited_at IS NOT NULL AND {worth("staged")} > {worth("old")}
    )
    ORDER BY staged.id
"""
"""Changes that were not taken, because somebody else has changed the row as well."""

ELSEWHERE = """
    SELECT staged.id FROM staged JOIN usage_records AS old USING (id)
    WHERE old.occurred_at <> staged.occurred_at ORDER BY staged.id
"""
"""Rows that are in the books with another start, of which another program has changed one; an id has one row."""

VERSIONS = f"""
    SELECT old.id, old.version FROM staged JOIN usage_records AS old USING (id, occurred_at)
    WHERE (base IS NOT NULL OR old.ledger <> %(ledger)s OR {_by_a_person("staged")})
    AND NOT {_differs("staged")}
"""
"""The versions of rows that are there as they are here, so that what is made from them is known as such; of rows whose
word is this ledger's, that tells it.
"""


_SAID = ("record_id", "revised_at", "revised_by", "source", "reason", "before", "after")

_IS_NEWS = f"""
    NOT EXISTS (
        SELECT 1 FROM usage_revisions AS there WHERE there.ledger <> %(ledger)s
        AND ({", ".join(f"there.{name}" for name in _SAID)}) = ({", ".join(f"grown.{name}" for name in _SAID)})
    )
"""
"""Whether no other ledger has brought the same entry about a row: an archive has those of its rows in its own chain."""


class Left(NamedTuple):
    """A row that was not taken, and why, in words that follow its id."""

    row_id: str
    why: str


CHANGED_ON_BOTH_SIDES = "was changed here and in the books; see pull --prefer"
UNTAKEABLE = "holds what PostgreSQL does not take"

_UNTAKEABLE = (errors.DataError, errors.IntegrityError, errors.ProgramLimitExceeded, errors.StatementTooComplex)
"""What PostgreSQL says of rows: a NUL, half a surrogate pair, JSON that is nested too deep, an id too long to look up,
what another program has put there.
"""

STARTS_ELSEWHERE = "has another occurred_at in the books, where another program has changed one of them"
DETACHED = "is of {0}, whose partition usage_records_{1} was detached; it waits until that is attached again"


class Pushed(NamedTuple):
    """What one batch came to: rows sent, rows that changed the books, rows that were not taken. `archived`: so many are
    in an archive.
    """

    sent: int
    stored: int
    left: tuple[Left, ...] = ()
    archived: int = 0


class _Stored(NamedTuple):
    """What storing came to, and the versions there of those rows whose versions this ledger has to know."""

    rows: int
    left: list[Left]
    versions: list[tuple[str, int]]


class Pusher:
    """Pushes one ledger over one connection, which nobody else does meanwhile (`exchange`)."""

    def __init__(self, outbox: Outbox, connection: Connection, source: str, replaces: bool = False) -> None:
        """`replaces`: the ledger is pushed in the place of the one that it was restored from, under its name."""
        self._outbox = outbox
        self._connection = connection
        self._names: dict[str, Any] = {"source": source, "ledger": outbox.ledger, "formers": outbox.formers}
        self._names |= {"batches": outbox.pushes.batches, "run": None}
        self._months: dict[str, str | None] = {}
        self._name_source(replaces)
        if outbox.formers and outbox.state("revisions") is None:
            outbox.skip_entries(common_trail(connection, outbox))
        for name, columns, table in (
            ("staged", f"{_ROW}, 0::bigint AS base, false AS is_changed", "usage_records"),
            ("staged_iterations", ", ".join(ITERATION_COLUMNS), "usage_iterations"),
        ):
            connection.execute(
                f"CREATE TEMP TABLE {name} ON COMMIT DELETE ROWS AS SELECT {columns} FROM {table} WHERE false"
            )
        connection.execute("CREATE UNIQUE INDEX ON staged (id)")
        connection.execute("CREATE INDEX ON staged_iterations (record_id)")

    def _name_source(self, replaces: bool) -> None:
        """Take this proxy's name; raise `FleetError` where another ledger has it.

        One that this ledger was restored from, or is a copy of, gives it up only where somebody says so: it may live.
        """
        name = self._names["source"]
        try:
            with self._connection.transaction():
                if replaces or self._outbox.state("name") == name:
                    # It stays known, so that it is told what is so should it be pushed once more.
                    self._connection.execute(
                        "UPDATE usage_sources SET name = format('%%s (%%s)', name, ledger) "
                        "WHERE name = %(source)s AND ledger = ANY(%(formers)s::uuid[])",
                        self._names,
                    )
                known = self._connection.execute(
                    "UPDATE usage_sources SET name = %(source)s WHERE ledger = %(ledger)s", self._names
                )
                if not known.rowcount:
                    self._connection.execute(
                        "INSERT INTO usage_sources (name, ledger) VALUES (%(source)s, %(ledger)s)", self._names
                    )
        except errors.UniqueViolation:
            raise FleetError(f"another ledger is pushed as {name}; {self._ways_out(name)}") from None
        self._outbox.note_name(name)

    def _ways_out(self, name: str) -> str:
        asked = "SELECT 1 FROM usage_sources WHERE name = %(source)s AND ledger = ANY(%(formers)s::uuid[])"
        if self._connection.execute(asked, self._names).fetchone() is None:
            return "give this one a name of its own with --source"
        return (
            "where this one is a copy of it, give it a name of its own with --source; "
            f"where it was restored in its place, say --as-new --source {name}"
        )

    def push(self) -> Iterator[Pushed]:
        """Push all that waits now, batch by batch. What is left waits for the next push."""
        yield from self._push_growing("revisions", "usage_revisions", revisions.COLUMNS)
        yield from self._push_growing("adjustments", "usage_adjustments", ADJUSTMENT_COLUMNS)
        until = self._outbox.last()
        with ThreadPoolExecutor(1) as reading:
            batch = self._outbox.take(BATCH, until)
            while batch is not None:
                self._begin_batch()
                # The ledger is read while the server stores, and never while what is stored is acknowledged.
                following = reading.submit(self._outbox.take, BATCH, until, batch)
                try:
                    stored = self._store(batch)
                except _UNTAKEABLE:
                    following.exception()
                    stored = self._store_mended(batch)
                finally:
                    following.exception()  # waits for it
                left = [Left(row_id, f"cannot be: {why}") for row_id, why in batch.impossible.items()] + stored.left
                self._outbox.acknowledge(batch, stored.versions, [each.row_id for each in left])
                yield Pushed(len(batch.rows), stored.rows, tuple(left), batch.archived)
                batch = following.result()
                if batch is None:  # or nothing but what had come before the outbox was
                    batch = self._outbox.take(BATCH, until)
        self._outbox.finish()

    def _begin_batch(self) -> None:
        if self._names["run"] is None:
            self._names["run"] = self._outbox.begin_run()
        self._names["batches"] += 1

    def _store(self, batch: Batch) -> _Stored:
        left, rows = list[Left](), batch.rows
        if any(map(self._closed, {batch.months[row_id] for row_id in rows})):
            left = [Left(row_id, why) for row_id in rows if (why := self._closed(batch.months[row_id]))]
        if left:
            rows = {row_id: row for row_id, row in rows.items() if row_id not in {each.row_id for each in left}}
        elif batch.is_new and not batch.bases:
            with contextlib.suppress(errors.UniqueViolation):  # of a push that nobody acknowledged, or of a replay
                return self._add(batch)
        made_from = (
            f"{row}{SEPARATOR}{batch.bases.get(row_id, NULL)}{SEPARATOR}{row_id in batch.changed}"
            for row_id, row in rows.items()
        )
        stored = self._merge(made_from, batch.iterations)
        return stored._replace(left=left + stored.left)

    def _store_mended(self, batch: Batch) -> _Stored:
        """Store the rows of a batch each by itself, as PostgreSQL takes it, so that none holds up another."""
        result = _Stored(0, [], [])
        rows, iterations = self._outbox.cells(list(batch.rows))
        for row_id, cells in rows.items():
            why = self._closed(str(cells[COLUMNS.index("occurred_at")])[:7])
            if why is None:
                row = line_of([*mended(cells), batch.bases.get(row_id), row_id in batch.changed])
                try:
                    stored = self._merge([row], map(line_of, iterations.get(row_id, ())))
                except _UNTAKEABLE:
                    why = UNTAKEABLE
                else:
                    result = _Stored(
                        result.rows + stored.rows, result.left + stored.left, result.versions + stored.versions
                    )
            if why is not None:
                result.left.append(Left(row_id, why))
        return result

    def _closed(self, month: str) -> str | None:
        """Return why no row of a month can be stored; make its partition where there is none."""
        if month not in self._months:
            self._months[month] = self._open(month)
        return self._months[month]

    def _open(self, month: str) -> str | None:
        try:
            first = date.fromisoformat(f"{month}-01")
        except ValueError:
            return UNTAKEABLE
        if first.year == date.max.year:  # its last month has no end that a date could name
            return UNTAKEABLE
        if not make_partition(self._connection, first):
            return DETACHED.format(month, month.replace("-", "_"))
        return None

    def _add(self, batch: Batch) -> _Stored:
        """Store rows that are new to the books."""
        with self._writing():
            signature = SEPARATOR + line_of([self._names["source"], self._names["ledger"]])
            signed = (row + signature for row in batch.rows.values())
            self._copy("usage_records", (*COLUMNS, "source", "ledger"), signed)
            self._copy("usage_iterations", ITERATION_COLUMNS, batch.iterations)
        return _Stored(len(batch.rows), [], [])

    def _merge(self, rows: Iterable[str], iterations: Iterable[str]) -> _Stored:
        """Store those rows that are better than what is there, or made from it."""
        connection = self._connection
        with self._writing():
            self._copy("staged", (*COLUMNS, "base", "is_changed"), rows)
            elsewhere = self._ids(ELSEWHERE)
            if elsewhere:
                connection.execute("DELETE FROM staged WHERE id = ANY(%s)", (elsewhere,))
            self._copy("staged_iterations", ITERATION_COLUMNS, iterations)
            stored = self._ids(MERGE)
            connection.execute("DELETE FROM usage_iterations WHERE record_id = ANY(%s)", (stored,))
            connection.execute(
                "INSERT INTO usage_iterations SELECT * FROM staged_iterations WHERE record_id = ANY(%s)", (stored,)
            )
            left = [Left(row_id, STARTS_ELSEWHERE) for row_id in elsewhere]
            left += [Left(row_id, CHANGED_ON_BOTH_SIDES) for row_id in self._ids(CONFLICTS)]
            versions = connection.execute(VERSIONS, self._names).fetchall()
        return _Stored(len(stored), left, versions)

    def _ids(self, statement: str) -> list[str]:
        return [row[0] for row in self._connection.execute(statement, self._names).fetchall()]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Write what belongs to a batch in one transaction, which the books note as that batch."""
        with self._connection.transaction():
            self._connection.execute("SELECT set_config(%s, 'on', true)", (ACCESS,))
            yield
            self._connection.execute(
                "UPDATE usage_sources SET batches = %(batches)s, run = %(run)s, last_push = now() "
                "WHERE ledger = %(ledger)s",
                self._names,
            )

    def _copy(self, table: str, columns: Sequence[str], lines: Iterable[str]) -> None:
        target = sql.SQL("COPY {} ({}) FROM STDIN WITH (DELIMITER {}, NULL {})").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            *map(sql.Literal, (SEPARATOR, NULL)),
        )
        with self._connection.cursor() as cursor, cursor.copy(target) as copy:
            for some in batched(lines, 500):
                copy.write("\n".join([*some, ""]))

    def _push_growing(self, kind: str, table: str, columns: Sequence[str]) -> Iterator[Pushed]:
        """Push what only grows: entries of the trail, adjustments. Yield what PostgreSQL does not take of it."""
        while True:
            lines, last = self._outbox.entries(kind, BATCH)
            if not lines:
                return
            self._begin_batch()
            try:
                self._grow(table, columns, list(lines.values()))
            except _UNTAKEABLE:
                yield Pushed(0, 0, tuple(self._grow_mended(kind, table, columns, lines)))
            self._outbox.acknowledge_entries(kind, last)

    def _grow(self, table: str, columns: Sequence[str], lines: Sequence[str]) -> None:
        names = ", ".join(columns)
        with self._writing():
            self._connection.execute(f"CREATE TEMP TABLE grown (LIKE {table}) ON COMMIT DROP")
            self._connection.execute("ALTER TABLE grown ALTER ledger DROP NOT NULL")
            self._copy("grown", columns, lines)
            is_new = _IS_NEWS if table == "usage_revisions" else "true"
            self._connection.execute(
                f"INSERT INTO {table} (ledger, {names}) SELECT %(ledger)s, {names} FROM grown WHERE {is_new} "
                "ON CONFLICT DO NOTHING",
                self._names,
            )

    def _grow_mended(self, kind: str, table: str, columns: Sequence[str], lines: Mapping[int, str]) -> Iterator[Left]:
        """Store each entry by itself; yield those that cannot be: another program has changed them, as verify says."""
        for number, line in lines.items():
            try:
                self._grow(table, columns, [line])
            except _UNTAKEABLE:
                yield Left(f"{number} of {kind}", f"{UNTAKEABLE}, and stays out of the books; see verify")
