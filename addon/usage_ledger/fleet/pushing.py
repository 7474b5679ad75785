"""Pushing: from a ledger's outbox into the fleet's books.

Room: fleet. Imports psycopg, the ledger and its neighbours. A batch goes by COPY into a staging table and from there by
one statement into the books, in one transaction; only then is it acknowledged in the ledger. So a batch may go over the
wire twice and is stored once. Promises that a row is never replaced by a worse one, nor one that somebody has edited
there by a row that does not know of it, and that every correction that is not taken is told.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import batched
from typing import Any, NamedTuple

from psycopg import errors, sql

from usage_ledger.fleet.schema import ACCESS, Connection, make_partition
from usage_ledger.fleet.server import FleetError
from usage_ledger.ledger.columns import COLUMNS, ITERATION_COLUMNS, JSON_COLUMNS
from usage_ledger.ledger.outbox import ADJUSTMENT_COLUMNS, NULL, REVISION_COLUMNS, SEPARATOR, Batch, Outbox

BATCH = 5_000
"""Rows a transaction."""

_ROW = ", ".join(COLUMNS)


def _corrected(row: str) -> str:
    return f"({row}.metadata ->> '_manually_updated' IS NOT DISTINCT FROM 'true')"


def _rank(row: str) -> str:
    """SQL for the worth of a row: corrected > complete > none > partial > missing."""
    return (
        f"CASE WHEN {_corrected(row)} THEN 5 ELSE CASE {row}.usage_state "
        "WHEN 'complete' THEN 4 WHEN 'none' THEN 3 WHEN 'partial' THEN 2 WHEN 'missing' THEN 1 ELSE 0 END END"
    )


def _all(row: str) -> str:
    return f"ROW({', '.join(f'{row}.{name}' for name in COLUMNS)})"


_BASE = "(SELECT base FROM staged WHERE staged.id = excluded.id)"
_SUCCEEDS = f"""
    ((old.edited_at IS NULL AND old.ledger = excluded.ledger AND {_rank("excluded")} >= {_rank("old")})
    OR old.version = {_BASE})
"""
"""The row there is an earlier one of this ledger's, or the one that this one was made from."""

_BETTER = f"""
    (old.edited_at IS NULL AND ({_rank("excluded")} > {_rank("old")} OR (
        {_rank("excluded")} = 2 AND {_rank("old")} = 2 AND excluded.total_tokens > old.total_tokens
    )))
"""

MERGE = f"""
    INSERT INTO usage_records AS old ({_ROW}, source, ledger)
    SELECT {_ROW}, %(source)s, %(ledger)s FROM staged ORDER BY id
    ON CONFLICT (id, occurred_at) DO UPDATE SET
        {", ".join(f"{name} = excluded.{name}" for name in COLUMNS if name not in ("id", "occurred_at"))},
        ledger = excluded.ledger, version = excluded.version, edited_at = NULL, edited_by = NULL
    WHERE {_all("excluded")} IS DISTINCT FROM {_all("old")} AND ({_SUCCEEDS} OR {_BETTER})
    RETURNING id
"""
"""Store staged rows; those that are not better than what is there, nor made from it, change nothing."""

CONFLICTS = f"""
    SELECT staged.id FROM staged JOIN usage_records AS old USING (id, occurred_at)
    WHERE ({_corrected("staged")} OR base IS NOT NULL) AND {_rank("staged")} >= {_rank("old")}
        AND {_all("staged")} IS DISTINCT FROM {_all("old")}
    ORDER BY staged.id
"""
"""Changes by people that were not taken, because somebody else has changed the row as well."""


VERSIONS = f"""
    SELECT old.id, old.version FROM staged JOIN usage_records AS old USING (id, occurred_at)
    WHERE (base IS NOT NULL OR {_corrected("staged")}) AND {_all("staged")} IS NOT DISTINCT FROM {_all("old")}
"""
"""The versions of rows that are there as they are here; of others this ledger has yet to hear."""


class Pushed(NamedTuple):
    """What one batch came to: rows sent, rows that changed the books, and ids of rows that were not taken: changed by
    somebody else as well, or such as PostgreSQL does not take whatever is done. `archived`: so many are in an archive.
    """

    sent: int
    stored: int
    conflicts: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    archived: int = 0


type Versions = Sequence[tuple[str, int]]
"""Which version rows that came from the other side have there now, by their ids."""


class Pusher:
    """Pushes one ledger over one connection."""

    def __init__(self, outbox: Outbox, connection: Connection, books: str, source: str) -> None:
        self._outbox = outbox
        self._ledger = outbox.ledger
        self._connection = connection
        self._source = source
        self._months: set[str] = set()
        self._name_source()
        outbox.begin_for(books)
        for name, columns, table in (
            ("staged", f"{_ROW}, 0::bigint AS base", "usage_records"),
            ("staged_iterations", ", ".join(ITERATION_COLUMNS), "usage_iterations"),
        ):
            connection.execute(
                f"CREATE TEMP TABLE {name} ON COMMIT DELETE ROWS AS SELECT {columns} FROM {table} WHERE false"
            )
        connection.execute("CREATE UNIQUE INDEX ON staged (id)")

    def _name_source(self) -> None:
        """Take this proxy's name; raise `FleetError` where another ledger has it."""
        try:
            known = self._connection.execute(
                "UPDATE usage_sources SET name = %(source)s, last_push = now() WHERE ledger = %(ledger)s", self._names()
            )
            if not known.rowcount:
                self._connection.execute(
                    "INSERT INTO usage_sources (name, ledger) VALUES (%(source)s, %(ledger)s)", self._names()
                )
        except errors.UniqueViolation:
            raise FleetError(
                f"another ledger is pushed as {self._source}; give this one a name of its own with --source"
            ) from None

    def push(self) -> Iterator[Pushed]:
        """Push all that waits, batch by batch."""
        self._push_growing("revisions", "usage_revisions", REVISION_COLUMNS)
        self._push_growing("adjustments", "usage_adjustments", ADJUSTMENT_COLUMNS)
        again: list[str] = []
        with ThreadPoolExecutor(1) as reading:
            while (batch := self._outbox.take(BATCH)) is not None:
                while batch is not None:
                    # The ledger is read while the server stores, and never while what is stored is acknowledged.
                    following = reading.submit(self._outbox.take, BATCH, batch)
                    try:
                        pushed, versions = self._store(batch)
                    finally:
                        following.exception()  # waits for it
                    again += [*pushed.conflicts, *pushed.refused]
                    self._outbox.acknowledge(batch, versions)
                    yield pushed._replace(archived=batch.archived)
                    batch = following.result()
        self._outbox.put_back(again)

    def _store(self, batch: Batch) -> tuple[Pushed, Versions]:
        try:
            if batch.is_new and not batch.bases:
                with contextlib.suppress(errors.UniqueViolation):  # of a push that nobody acknowledged, or of a replay
                    return self._add(batch)
            return self._merge(batch, batch.rows)
        except (errors.DataError, errors.IntegrityError, UnmendableError):
            # Something that PostgreSQL does not take: a NUL, half a surrogate pair, what another program has put there.
            with contextlib.suppress(errors.DataError, errors.IntegrityError, UnmendableError):
                return self._merge(batch, {row_id: mended(row) for row_id, row in batch.rows.items()})
        return self._one_by_one(batch)

    def _one_by_one(self, batch: Batch) -> tuple[Pushed, Versions]:
        """Store the rows of a batch each by itself, so that one that cannot be stored holds up no other."""
        stored, conflicts, refused, versions = 0, list[str](), list[str](), list[tuple[str, int]]()
        for row_id, row in batch.rows.items():
            month = row.split(SEPARATOR)[COLUMNS.index("occurred_at")][:7]
            try:
                pushed, known = self._merge(batch._replace(months={month}), {row_id: mended(row)})
            except (errors.DataError, errors.IntegrityError, UnmendableError):
                refused.append(row_id)
            else:
                stored += pushed.stored
                conflicts += pushed.conflicts
                versions += known
        return Pushed(len(batch.rows), stored, tuple(conflicts), tuple(refused)), versions

    def _add(self, batch: Batch) -> tuple[Pushed, Versions]:
        """Store rows that are new to the books."""
        with self._writing(batch.months):
            self._copy("usage_records", (*COLUMNS, "source", "ledger"), self._signed(batch.rows.values()))
            self._copy("usage_iterations", ITERATION_COLUMNS, batch.iterations)
        return Pushed(len(batch.rows), len(batch.rows)), []

    def _merge(self, batch: Batch, rows: Mapping[str, str]) -> tuple[Pushed, Versions]:
        """Store those rows that are better than what is there, or made from it."""
        connection = self._connection
        with self._writing(batch.months):
            bases = (f"{row}{SEPARATOR}{batch.bases.get(row_id, NULL)}" for row_id, row in rows.items())
            self._copy("staged", (*COLUMNS, "base"), bases)
            stored = [row[0] for row in connection.execute(MERGE, self._names()).fetchall()]
            self._copy("staged_iterations", ITERATION_COLUMNS, batch.iterations)
            connection.execute("DELETE FROM usage_iterations WHERE record_id = ANY(%s)", (stored,))
            connection.execute(
                "INSERT INTO usage_iterations SELECT * FROM staged_iterations WHERE record_id = ANY(%s)", (stored,)
            )
            conflicts = [row[0] for row in connection.execute(CONFLICTS).fetchall()]
            versions = connection.execute(VERSIONS).fetchall()
        return Pushed(len(rows), len(stored), tuple(conflicts)), versions

    @contextlib.contextmanager
    def _writing(self, months: set[str]) -> Iterator[None]:
        with self._connection.transaction():
            self._connection.execute("SELECT set_config(%s, 'on', true)", (ACCESS,))
            for month in months - self._months:
                make_partition(self._connection, _first_day(month))
            yield
        self._months |= months

    def _signed(self, rows: Iterable[str]) -> Iterator[str]:
        name = self._source.replace("\\", "\\\\")
        signature = f"{SEPARATOR}{name}{SEPARATOR}{self._ledger}"
        return (row + signature for row in rows)

    def _names(self) -> dict[str, str]:
        return {"source": self._source, "ledger": self._ledger}

    def _copy(self, table: str, columns: Sequence[str], lines: Iterable[str]) -> None:
        target = sql.SQL("COPY {} ({}) FROM STDIN WITH (DELIMITER {}, NULL {})").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            *map(sql.Literal, (SEPARATOR, NULL)),
        )
        with self._connection.cursor() as cursor, cursor.copy(target) as copy:
            for some in batched(lines, 500):
                copy.write("\n".join([*some, ""]))

    def _push_growing(self, kind: str, table: str, columns: Sequence[str]) -> None:
        """Push what only grows: entries of the trail, adjustments."""
        key = columns[0]
        while True:
            lines, last = self._outbox.entries(kind, BATCH)
            if not lines:
                return
            with self._connection.transaction():
                self._connection.execute(f"CREATE TEMP TABLE grown (LIKE {table}) ON COMMIT DROP")
                self._connection.execute("ALTER TABLE grown ALTER ledger DROP NOT NULL")
                self._copy("grown", columns, lines)
                names = ", ".join(columns)
                self._connection.execute(
                    f"INSERT INTO {table} (ledger, {names}) SELECT %(ledger)s, {names} FROM grown "
                    f"ON CONFLICT (ledger, {key}) DO NOTHING",
                    self._names(),
                )
                differ = self._connection.execute(
                    f"SELECT min(grown.{key}) FROM grown JOIN {table} AS old "
                    f"ON old.ledger = %(ledger)s AND old.{key} = grown.{key} "
                    f"WHERE ROW({', '.join(f'old.{name}' for name in columns)}) "
                    f"IS DISTINCT FROM ROW({', '.join(f'grown.{name}' for name in columns)})",
                    self._names(),
                ).fetchone()
                if differ is not None and differ[0] is not None:
                    raise FleetError(
                        f"entry {differ[0]} of this ledger's {kind} is another one in the books: the ledger was "
                        "restored from a backup, or copied"
                    )
            self._outbox.acknowledge_entries(kind, last)


class UnmendableError(Exception):
    """A row that holds what cannot be, such as what separates cells; another program has put it there."""


def _first_day(month: str) -> date:
    try:
        first = date.fromisoformat(f"{month}-01")
    except ValueError:
        raise UnmendableError from None
    if first.year == date.max.year:  # its last month has no end that a date could name
        raise UnmendableError
    return first


def mended(row: str) -> str:
    """Return a row as PostgreSQL takes it: what is no text, no JSON or no number becomes something that is.

    JSON that PostgreSQL cannot hold is kept as a text within JSON.
    """
    cells = row.replace("\0", "\ufffd").replace("\n", r"\n").replace("\r", r"\r").split(SEPARATOR)
    if len(cells) != len(COLUMNS):
        raise UnmendableError
    for place, name in enumerate(COLUMNS):
        if name in JSON_COLUMNS and cells[place] != NULL:
            cells[place] = _mended_json(cells[place].replace("\\\\", "\\")).replace("\\", "\\\\")
        elif name == "total_cost" and not _is_number(cells[place]):
            cells[place] = NULL
    return SEPARATOR.join(cells)


def _is_number(text: str) -> bool:
    digits = text.removeprefix("-").replace(".", "", 1)
    return text == NULL or (digits.isascii() and digits.isdigit())


def _mended_json(text: str) -> str:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        value = {"_not_json": text}
    return json.dumps(_mended(value)).replace(r"\u0000", r"\ufffd")


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, list):
        return [_mended(each) for each in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(each) for name, each in value.items()}
    return value
