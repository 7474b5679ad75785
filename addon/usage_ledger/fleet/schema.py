"""The fleet's schema, as append-only migrations of a PostgreSQL database.

Room: fleet. Imports psycopg and the ledger's columns. `usage_records` has the ledger's columns with PostgreSQL's types,
so that the same queries run; beside them `source` (which proxy), `ledger` (whose word a row is), `version` (a number
that grows with each change), and who edited it by SQL of their own, which a trigger notes. Partitioned by month.
"""

import contextlib
from datetime import date
from typing import Any

import psycopg
from psycopg import errors, sql

from usage_ledger.ledger.columns import COLUMNS, COUNT_COLUMNS, ITERATION_COLUMNS

type Connection = psycopg.Connection[tuple[Any, ...]]

_TYPES = {
    **dict.fromkeys(("occurred_at", "completed_at"), "timestamptz"),
    **dict.fromkeys(("stream", "requires_manual_review"), "smallint"),
    **dict.fromkeys(
        (*COUNT_COLUMNS, "total_tokens", "duration_ms", "time_to_first_token_ms", "response_bytes"), "bigint"
    ),
    "http_status": "integer",
    "total_cost": "numeric",
    "usage_raw": "jsonb",
    "metadata": "jsonb",
    "billed": "smallint",
    "position": "integer",
}
_NEEDED = {
    *("id", "occurred_at", "account_id", "credential_kind", "host", "path", "model", "stream", *COUNT_COLUMNS),
    *("total_tokens", "usage_state", "requires_manual_review", "origin", "metadata", "writer"),
}
_NEEDED_OF_ITERATIONS = {"record_id", "position", *COUNT_COLUMNS}

ACCESS = "usage_ledger.pushing"
"""The setting by which the trigger tells `push` from everybody else."""

LOCK = 7_305_804_402_131_268_210
"""The advisory lock under which the schema is changed: "usage led", as a number."""


def _defined(columns: tuple[str, ...], needed: set[str]) -> str:
    return ", ".join(f"{name} {_TYPES.get(name, 'text')}{' NOT NULL' if name in needed else ''}" for name in columns)


_VERSION = "(nextval('usage_version') << 20) | floor(random() * 1048576)::bigint"
"""A number that is larger than those before, and that nobody gets once more after the books were restored."""

MIGRATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "create the books",
        (
            "CREATE SEQUENCE usage_version",
            f"""
            CREATE TABLE usage_records (
                {_defined(COLUMNS, _NEEDED)},
                source text NOT NULL,
                ledger uuid NOT NULL,
                version bigint NOT NULL DEFAULT nextval('usage_version'),
                edited_at timestamptz,
                edited_by text,
                PRIMARY KEY (id, occurred_at)
            ) PARTITION BY RANGE (occurred_at)
            """,
            "CREATE INDEX usage_records_occurred_at ON usage_records (occurred_at)",
            "CREATE INDEX usage_records_account ON usage_records (account_id, occurred_at)",
            "CREATE INDEX usage_records_request_id ON usage_records (request_id) WHERE request_id IS NOT NULL",
            "CREATE INDEX usage_records_flagged ON usage_records (occurred_at) WHERE requires_manual_review = 1",
            f"""
            CREATE TABLE usage_iterations (
                {_defined(ITERATION_COLUMNS, _NEEDED_OF_ITERATIONS)},
                PRIMARY KEY (record_id, position)
            )
            """,
            """
            CREATE TABLE usage_revisions (
                ledger uuid NOT NULL,
                position bigint NOT NULL,
                revised_at timestamptz NOT NULL,
                revised_by text NOT NULL,
                source text NOT NULL,
                reason text NOT NULL,
                record_id text,
                before text NOT NULL,
                after text NOT NULL,
                hash text NOT NULL,
                PRIMARY KEY (ledger, position)
            )
            """,
            "CREATE INDEX usage_revisions_record_id ON usage_revisions (record_id) WHERE record_id IS NOT NULL",
            """
            CREATE TABLE usage_adjustments (
                ledger uuid NOT NULL,
                number bigint NOT NULL,
                position bigint NOT NULL,
                day date NOT NULL,
                model text NOT NULL,
                api_key text NOT NULL,
                workspace text NOT NULL,
                input_tokens bigint NOT NULL,
                output_tokens bigint NOT NULL,
                cache_creation_5m_input_tokens bigint NOT NULL,
                cache_creation_1h_input_tokens bigint NOT NULL,
                cache_read_input_tokens bigint NOT NULL,
                web_search_requests bigint NOT NULL,
                PRIMARY KEY (ledger, number)
            )
            """,
            """
            CREATE TABLE usage_sources (
                name text PRIMARY KEY,
                ledger uuid UNIQUE NOT NULL,
                first_push timestamptz NOT NULL DEFAULT now(),
                last_push timestamptz NOT NULL DEFAULT now()
            )
            """,
            """
            CREATE FUNCTION usage_note_edit() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                NEW.version := nextval('usage_version');
                NEW.edited_at := clock_timestamp();
                NEW.edited_by := current_user;
                RETURN NEW;
            END $$
            """,
            f"""
            CREATE TRIGGER usage_records_edited BEFORE UPDATE ON usage_records FOR EACH ROW
            WHEN (current_setting('{ACCESS}', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION usage_note_edit()
            """,
        ),
    ),
    (
        "one row for each id, and batches that can be counted",
        (
            "ALTER TABLE usage_sources ADD COLUMN batches bigint NOT NULL DEFAULT 0",
            """
            ALTER TABLE usage_records ADD CONSTRAINT usage_records_start_in_milliseconds
            CHECK (occurred_at = date_trunc('milliseconds', occurred_at))
            """,
            # By the rights of whose tables these are, so that who corrects rows needs none beside them.
            """
            CREATE OR REPLACE FUNCTION usage_note_edit() RETURNS trigger LANGUAGE plpgsql
            SECURITY DEFINER SET search_path FROM CURRENT AS $$
            BEGIN
                IF NEW.id <> OLD.id OR NEW.occurred_at <> OLD.occurred_at THEN
                    RAISE EXCEPTION 'id and occurred_at say which request a row is, and stay as they are';
                END IF;
                NEW.version := nextval('usage_version');
                NEW.edited_at := clock_timestamp();
                NEW.edited_by := session_user;
                RETURN NEW;
            END $$
            """,
        ),
    ),
    (
        "runs of push have names, and no version comes twice, also where the books were restored",
        (
            "ALTER TABLE usage_sources ADD COLUMN run uuid",
            f"ALTER TABLE usage_records ALTER version SET DEFAULT {_VERSION}",
            """
            CREATE OR REPLACE FUNCTION usage_note_edit() RETURNS trigger LANGUAGE plpgsql
            SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
            BEGIN
                IF NEW.id <> OLD.id OR NEW.occurred_at <> OLD.occurred_at THEN
                    RAISE EXCEPTION 'id and occurred_at say which request a row is, and stay as they are';
                END IF;
                NEW.version := (nextval((quote_ident(TG_TABLE_SCHEMA) || '.usage_version')::regclass) << 20)
                    | floor(random() * 1048576)::bigint;
                NEW.edited_at := clock_timestamp();
                NEW.edited_by := session_user;
                RETURN NEW;
            END $$
            """,
            # Who edits an iteration edits its row.
            """
            CREATE FUNCTION usage_note_edit_of_iteration() RETURNS trigger LANGUAGE plpgsql
            SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
            BEGIN
                EXECUTE format('UPDATE %I.usage_records SET id = id WHERE id = $1', TG_TABLE_SCHEMA)
                USING CASE TG_OP WHEN 'DELETE' THEN OLD.record_id ELSE NEW.record_id END;
                RETURN NULL;
            END $$
            """,
            f"""
            CREATE TRIGGER usage_iterations_edited AFTER INSERT OR UPDATE OR DELETE ON usage_iterations FOR EACH ROW
            WHEN (current_setting('{ACCESS}', true) IS DISTINCT FROM 'on')
            EXECUTE FUNCTION usage_note_edit_of_iteration()
            """,
        ),
    ),
)


class NotOurBooksError(Exception):
    """The database holds something else under these names, or is of a newer version: one line for a person."""


def migrate(connection: Connection, make: bool) -> str:
    """Bring the schema up to date, one at a time; return the id of these books (a UUID).

    With `make`, make the books if there are none. Raises `NotOurBooksError`, and psycopg's errors where the rights are
    missing.
    """
    (encoding,) = connection.execute("SHOW server_encoding").fetchone() or ("",)
    if encoding != "UTF8":
        raise NotOurBooksError(
            f"this database holds text in {encoding}, and the books need one that was made with ENCODING 'UTF8'"
        )
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        there = _exists(connection, "usage_schema")
        if not there:
            if _exists(connection, "usage_records"):
                raise NotOurBooksError(
                    "there is a table usage_records that usage-ledger has not made; name another database or schema"
                )
            if not make:
                raise NotOurBooksError("there are no books in this database; the first push to it makes them")
            connection.execute(
                "CREATE TABLE usage_schema (number integer PRIMARY KEY, name text NOT NULL, books uuid NOT NULL, "
                "applied_at timestamptz NOT NULL DEFAULT now())"
            )
        done = connection.execute("SELECT number, books::text FROM usage_schema ORDER BY number").fetchall()
        if len(done) > len(MIGRATIONS):
            raise NotOurBooksError("these books are of a newer version of usage-ledger; update this one")
        books = str(done[0][1]) if done else None
        for number, (name, statements) in enumerate(MIGRATIONS[len(done) :], len(done) + 1):
            for statement in statements:
                connection.execute(statement)
            made = connection.execute(
                "INSERT INTO usage_schema (number, name, books) VALUES (%s, %s, coalesce(%s, gen_random_uuid())) "
                "RETURNING books::text",
                (number, name, books),
            ).fetchone()
            assert made is not None
            books = str(made[0])
        # From here on every name is one of that schema, whatever else search_path leads to.
        connection.execute(
            "SELECT set_config('search_path', quote_ident(nspname), false) FROM pg_namespace "
            "WHERE oid = (SELECT relnamespace FROM pg_class WHERE oid = 'usage_schema'::regclass)"
        )
    assert books is not None
    return books


def _exists(connection: Connection, table: str) -> bool:
    found = connection.execute("SELECT to_regclass(%s)", (table,)).fetchone()
    return found is not None and found[0] is not None


def make_partition(connection: Connection, month: date) -> bool:
    """Make the partition of a month (its first day) if there is none; return whether rows of that month can be stored.

    They cannot where the partition was detached: a second one would be in the way of attaching it again.
    """
    name = f"usage_records_{month:%Y_%m}"
    with connection.transaction():
        found = _is_partition(connection, name)
        if found is None:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            found = _is_partition(connection, name)
        if found is not None:
            return found
        following = date(month.year + month.month // 12, month.month % 12 + 1, 1)
        # Where another partition has these days already, or some rows of them (DEFAULT), that one is as good.
        with contextlib.suppress(errors.InvalidObjectDefinition, errors.CheckViolation), connection.transaction():
            # CREATE TABLE ... PARTITION OF would wait for everybody who reads the books.
            connection.execute(
                sql.SQL("CREATE TABLE {} (LIKE usage_records INCLUDING DEFAULTS INCLUDING CONSTRAINTS)").format(
                    sql.Identifier(name)
                )
            )
            connection.execute(
                sql.SQL("ALTER TABLE usage_records ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
                    sql.Identifier(name), sql.Literal(f"{month} 00:00+00"), sql.Literal(f"{following} 00:00+00")
                )
            )
    return True


def _is_partition(connection: Connection, name: str) -> bool | None:
    """Whether a table is attached; None where there is none of that name."""
    found = connection.execute("SELECT relispartition FROM pg_class WHERE oid = to_regclass(%s)", (name,)).fetchone()
    return None if found is None else bool(found[0])
