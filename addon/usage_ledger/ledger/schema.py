"""The ledger's schema, as append-only migrations.

Room: ledger, the only place that knows the schema. Imports the standard library, `sqlite-utils` and `marks`. Promises
that migrations are additive within a major version, so that old and new proxies write to one ledger during an upgrade.
SQLite from 3.40 on will do.
"""

import sqlite3

from sqlite_utils import Database, Migrations

from usage_ledger.ledger.marks import APPLICATION_ID, MAJOR, check_marks

PAGE_SIZE = 8192
"""Bytes of a page. A row with its rate limits has about 1.8 KB, of which 4 go into this, and 2 into SQLite's 4096."""

_migrations = Migrations("usage_ledger")


@_migrations()
def create_usage_records(database: Database) -> None:
    """One row per request, and the entries of its `usage.iterations`."""
    database.execute(
        """
        CREATE TABLE usage_records (
            id TEXT PRIMARY KEY NOT NULL,
            occurred_at TEXT NOT NULL,
            completed_at TEXT,
            account_id TEXT NOT NULL,
            api_key_hint TEXT,
            credential_kind TEXT NOT NULL,
            organization_id TEXT,
            workspace_id TEXT,
            request_id TEXT,
            session_id TEXT,
            tag TEXT,
            host TEXT NOT NULL,
            path TEXT NOT NULL,
            requested_model TEXT,
            model TEXT NOT NULL,
            message_id TEXT,
            stop_reason TEXT,
            service_tier TEXT,
            inference_geo TEXT,
            speed TEXT,
            stream INTEGER NOT NULL,
            http_status INTEGER,
            input_tokens INTEGER NOT NULL,
            output_tokens INTEGER NOT NULL,
            cache_creation_input_tokens INTEGER NOT NULL,
            cache_creation_5m_input_tokens INTEGER NOT NULL,
            cache_creation_1h_input_tokens INTEGER NOT NULL,
            cache_read_input_tokens INTEGER NOT NULL,
            thinking_tokens INTEGER NOT NULL,
            web_search_requests INTEGER NOT NULL,
            web_fetch_requests INTEGER NOT NULL,
            total_tokens INTEGER NOT NULL,
            usage_state TEXT NOT NULL,
            requires_manual_review INTEGER NOT NULL,
            review_reason TEXT,
            total_cost TEXT,
            price_source TEXT,
            duration_ms INTEGER,
            time_to_first_token_ms INTEGER,
            response_bytes INTEGER,
            origin TEXT NOT NULL,
            usage_raw TEXT,
            metadata TEXT NOT NULL,
            writer TEXT NOT NULL
        ) STRICT
        """
    )
    database.execute(
        """
        CREATE TABLE usage_iterations (
            record_id TEXT NOT NULL REFERENCES usage_records(id),
            position INTEGER NOT NULL,
            type TEXT,
            model TEXT,
            billed INTEGER,
            input_tokens INTEGER NOT NULL,
            output_tokens INTEGER NOT NULL,
            cache_creation_input_tokens INTEGER NOT NULL,
            cache_creation_5m_input_tokens INTEGER NOT NULL,
            cache_creation_1h_input_tokens INTEGER NOT NULL,
            cache_read_input_tokens INTEGER NOT NULL,
            PRIMARY KEY (record_id, position)
        ) STRICT, WITHOUT ROWID
        """
    )
    # Iterations belong to the usage they came with: when a settled row gets better usage, the old ones go.
    database.execute(
        """
        CREATE TRIGGER usage_iterations_follow AFTER UPDATE OF usage_raw ON usage_records
        WHEN old.usage_state <> 'pending'
        BEGIN
            DELETE FROM usage_iterations WHERE record_id = old.id;
        END
        """
    )
    # Every index costs each request a page to write, so there are only those that a lookup or the review queue needs.
    database.execute("CREATE INDEX usage_records_occurred_at ON usage_records(occurred_at)")
    database.execute("CREATE INDEX usage_records_request_id ON usage_records(request_id) WHERE request_id IS NOT NULL")
    database.execute("CREATE INDEX usage_records_message_id ON usage_records(message_id) WHERE message_id IS NOT NULL")
    database.execute(
        "CREATE INDEX usage_records_flagged ON usage_records(occurred_at) WHERE requires_manual_review = 1"
    )
    database.execute("CREATE INDEX usage_records_pending ON usage_records(writer) WHERE usage_state = 'pending'")


@_migrations()
def create_usage_revisions(database: Database) -> None:
    """The trail: what changed a row after it was settled. It only ever grows, and each entry vouches for the last."""
    database.execute(
        """
        CREATE TABLE usage_revisions (
            position INTEGER PRIMARY KEY NOT NULL,
            revised_at TEXT NOT NULL,
            revised_by TEXT NOT NULL,
            source TEXT NOT NULL,
            reason TEXT NOT NULL,
            record_id TEXT,
            before TEXT NOT NULL,
            after TEXT NOT NULL,
            hash TEXT NOT NULL
        ) STRICT
        """
    )
    database.execute("CREATE INDEX usage_revisions_record_id ON usage_revisions(record_id) WHERE record_id IS NOT NULL")
    for name, event in (("stay", "UPDATE"), ("remain", "DELETE")):
        database.execute(
            f"""
            CREATE TRIGGER usage_revisions_{name} BEFORE {event} ON usage_revisions
            BEGIN
                SELECT raise(ABORT, 'usage_revisions is append-only');
            END
            """
        )
    # Without this, INSERT OR REPLACE would take an entry's place, for which SQLite fires no trigger of DELETE.
    database.execute(
        """
        CREATE TRIGGER usage_revisions_follow BEFORE INSERT ON usage_revisions
        WHEN new.position IS NOT (SELECT coalesce(max(position), 0) + 1 FROM usage_revisions)
        BEGIN
            SELECT raise(ABORT, 'an entry of usage_revisions follows the last one');
        END
        """
    )


@_migrations()
def add_costs_of_iterations(database: Database) -> None:
    """What each iteration cost, so that money stands under the model it was spent on."""
    database.execute("ALTER TABLE usage_iterations ADD COLUMN total_cost TEXT")


@_migrations()
def create_closings_and_archive(database: Database) -> None:
    """Periods whose books are closed, what came or changed in them afterwards, and which rows were archived."""
    database.execute(
        """
        CREATE TABLE usage_closings (
            number INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
            since TEXT NOT NULL,
            until TEXT NOT NULL,
            position INTEGER
        ) STRICT
        """
    )
    database.execute("CREATE INDEX usage_closings_until ON usage_closings(until)")
    database.execute(
        """
        CREATE TABLE usage_late (
            closing INTEGER NOT NULL,
            record_id TEXT NOT NULL,
            what TEXT NOT NULL,
            noticed_at TEXT NOT NULL,
            PRIMARY KEY (closing, record_id)
        ) STRICT, WITHOUT ROWID
        """
    )
    # Proxies go on writing whatever is closed: no request may be lost. So what they change there is noted instead, for
    # the last closing of the period and for one that is being made (which has no position yet). Once a row: what is
    # done about conflicts in here would be what the statement outside says, and an upsert says to fail.
    for what, event in (("came", "INSERT"), ("changed", "UPDATE")):
        database.execute(
            f"""
            CREATE TRIGGER usage_late_{what} AFTER {event} ON usage_records
            WHEN new.occurred_at < (SELECT max(until) FROM usage_closings)
            BEGIN
                INSERT INTO usage_late (closing, record_id, what, noticed_at)
                SELECT number, new.id, '{what}', strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
                FROM usage_closings WHERE since <= new.occurred_at AND new.occurred_at < until AND (
                    position IS NULL OR number = (
                        SELECT max(number) FROM usage_closings WHERE since <= new.occurred_at
                        AND new.occurred_at < until AND position IS NOT NULL
                    )
                ) AND NOT EXISTS (
                    SELECT 1 FROM usage_late WHERE closing = number AND record_id = new.id
                );
            END
            """
        )
    database.execute(
        """
        CREATE TABLE usage_archives (
            number INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
            token TEXT UNIQUE NOT NULL,
            path TEXT NOT NULL,
            before TEXT NOT NULL,
            owner TEXT NOT NULL,
            position INTEGER
        ) STRICT
        """
    )
    database.execute(
        """
        CREATE TABLE usage_archived (
            record_id TEXT PRIMARY KEY NOT NULL,
            archive INTEGER NOT NULL,
            request_id TEXT,
            message_id TEXT,
            start TEXT NOT NULL
        ) STRICT, WITHOUT ROWID
        """
    )
    for name in ("request_id", "message_id", "start"):
        database.execute(f"CREATE INDEX usage_archived_{name} ON usage_archived({name}) WHERE {name} IS NOT NULL")
    database.execute("CREATE INDEX usage_archived_archive ON usage_archived(archive)")


@_migrations()
def create_bill(database: Database) -> None:
    """What upstream billed: raw answers and files, the buckets in them, their lines, and the API keys it lists."""
    database.execute(
        """
        CREATE TABLE bill_answers (
            number INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
            loaded_at TEXT NOT NULL,
            loaded_by TEXT NOT NULL,
            kind TEXT NOT NULL,
            origin TEXT NOT NULL,
            source TEXT NOT NULL,
            digest TEXT NOT NULL,
            body TEXT NOT NULL
        ) STRICT
        """
    )
    database.execute(
        """
        CREATE TABLE bill_buckets (
            number INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
            kind TEXT NOT NULL,
            origin TEXT NOT NULL,
            since TEXT NOT NULL,
            until TEXT NOT NULL,
            loaded_at TEXT NOT NULL,
            answer INTEGER NOT NULL,
            UNIQUE (kind, origin, since, until)
        ) STRICT
        """
    )
    database.execute("CREATE INDEX bill_buckets_answer ON bill_buckets(answer)")
    names = ("model", "api_key", "workspace", "service_tier", "context_window", "inference_geo", "speed")
    told = ", ".join(f"{name} TEXT" for name in names)
    database.execute(
        f"""
        CREATE TABLE bill_usage (
            bucket INTEGER NOT NULL,
            {told},
            input_tokens INTEGER NOT NULL,
            output_tokens INTEGER NOT NULL,
            cache_creation_5m_input_tokens INTEGER NOT NULL,
            cache_creation_1h_input_tokens INTEGER NOT NULL,
            cache_read_input_tokens INTEGER NOT NULL,
            web_search_requests INTEGER NOT NULL
        ) STRICT
        """
    )
    database.execute(
        f"""
        CREATE TABLE bill_costs (
            bucket INTEGER NOT NULL,
            amount TEXT NOT NULL,
            description TEXT,
            {told},
            token_type TEXT,
            cost_type TEXT
        ) STRICT
        """
    )
    for table in ("bill_usage", "bill_costs"):
        database.execute(f"CREATE INDEX {table}_bucket ON {table}(bucket)")
    database.execute(
        """
        CREATE TABLE bill_keys (
            id TEXT PRIMARY KEY NOT NULL,
            name TEXT,
            hint TEXT,
            workspace TEXT,
            status TEXT,
            answer INTEGER NOT NULL
        ) STRICT
        """
    )
    database.execute(
        """
        CREATE TABLE bill_adjustments (
            number INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
            position INTEGER NOT NULL,
            day TEXT NOT NULL,
            model TEXT NOT NULL,
            api_key TEXT NOT NULL,
            workspace TEXT NOT NULL,
            input_tokens INTEGER NOT NULL,
            output_tokens INTEGER NOT NULL,
            cache_creation_5m_input_tokens INTEGER NOT NULL,
            cache_creation_1h_input_tokens INTEGER NOT NULL,
            cache_read_input_tokens INTEGER NOT NULL,
            web_search_requests INTEGER NOT NULL
        ) STRICT
        """
    )
    database.execute("CREATE INDEX bill_adjustments_day ON bill_adjustments(day)")
    database.execute(
        """
        CREATE TABLE bill_reconciliations (
            number INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
            run_at TEXT NOT NULL,
            run_by TEXT NOT NULL,
            since TEXT NOT NULL,
            until TEXT NOT NULL,
            dimensions TEXT NOT NULL,
            left INTEGER NOT NULL,
            result TEXT NOT NULL
        ) STRICT
        """
    )


@_migrations()
def create_fleet(database: Database) -> None:
    """What a ledger that is pushed keeps: where that stands, which rows have changed since, and which rows came from
    elsewhere in which version. The triggers that fill the outbox are made by the first push (`outbox`).
    """
    for table in (
        "fleet_state (name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
        "fleet_outbox (number INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, record_id TEXT NOT NULL, "
        "is_new INTEGER NOT NULL) STRICT",
        "fleet_versions (record_id TEXT PRIMARY KEY NOT NULL, version INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    ):
        database.execute(f"CREATE TABLE {table}")
    database.execute("CREATE INDEX fleet_outbox_record_id ON fleet_outbox(record_id)")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date; safe when several processes do it at once.

    The whole step runs in one write transaction: whoever comes second finds nothing left to do.
    """
    connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")  # of a file that is empty yet; others keep theirs
    database = Database(connection)
    if check_marks(connection, "the database") and not _migrations.pending(database):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        _migrations.apply(database)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {MAJOR}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
