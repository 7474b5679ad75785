"""Serving: a ledger in Datasette, on this machine alone, read-only.

Room: web. Imports Datasette, uvicorn and the ledger's reading side.
"""

import asyncio
import logging
import secrets
import socket
import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import uvicorn
from datasette.app import Datasette
from datasette.database import Database
from datasette.plugins import pm

from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.reading import connect_for_reading
from usage_ledger.web.costs import TABLES
from usage_ledger.web.guarding import PARAMETER, Guard
from usage_ledger.web.pages import LEDGER, Pages

HOST = "127.0.0.1"
_HERE = Path(__file__).parent


_TROUBLE = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_PERM),
    *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB),
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM),
}
"""What SQLite says of a file that cannot be read; all else is about the query."""


class _Ledger(Database):  # type: ignore[misc]  # Datasette tells no types
    """A ledger, opened as every reading command opens it, and for each query anew.

    A connection that is kept would go on reading a ledger that was moved away, and where nobody may write it, one that
    has become another one beneath it.
    """

    def connect(self, write: bool = False) -> sqlite3.Connection:
        if write:
            raise sqlite3.OperationalError("a ledger is only read here")
        return connect_for_reading(Path(self.path))

    async def execute_fn[T](self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Run `read` over a connection in a thread; raise `LedgerError` where the ledger cannot be read."""

        def reading() -> T:
            with closing(self.connect()) as connection:
                self.ds._prepare_connection(connection, self.name)
                try:
                    return read(connection)
                except sqlite3.Error as error:
                    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _TROUBLE:
                        raise LedgerError(f"cannot read {self.path}: {error}") from error
                    raise

        return await asyncio.get_running_loop().run_in_executor(self.ds.executor, reading)

    async def execute(self, *arguments: Any, **more: Any) -> Any:
        """Run a query, and leave it to the page to say what is wrong with it."""
        return await super().execute(*arguments, **more | {"log_sql_errors": False})


def site(path: Path) -> Datasette:
    """Return what is served of a ledger. Plugins are those of a process, so it can serve one ledger."""
    pm.unregister(name="datasette.handle_exception")  # it prints a traceback whatever the matter is
    pm.register(Pages(path), name="usage-ledger")
    datasette = Datasette(
        [],
        static_mounts=[("usage", str(_HERE / "static"))],
        metadata={
            "title": "claude-usage-ledger",
            "extra_css_urls": ["/usage/usage.css"],
            "extra_js_urls": ["/usage/usage.js"],
            "databases": {LEDGER: TABLES},
        },
        settings={
            "allow_download": False,
            "suggest_facets": False,
            "facet_time_limit_ms": 1_000,
            "sql_time_limit_ms": 5_000,
            "default_page_size": 50,
            "num_sql_threads": 4,
            "max_csv_mb": 0,  # as long as it is
            "truncate_cells_html": 400,
        },
    )
    datasette.remove_database("_memory")
    datasette.add_database(_Ledger(datasette, path=str(path)), name=LEDGER)
    return datasette


def serve(path: Path, listener: socket.socket, started: Callable[[str], None], safe: Callable[[str], str]) -> None:
    """Serve a ledger on a socket until somebody ends it.

    `started` is called once it answers, with the path to open first; `safe` makes a text fit for a spreadsheet's cell.
    """
    token = secrets.token_urlsafe(16)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # Datasette's, where it refuses a facet
    app = Guard(site(path).app(), token, safe)
    config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="on")
    server = _Server(config, lambda: started(f"/?{PARAMETER}={token}"))
    server.run(sockets=[listener])
    if server.fault is not None:
        raise server.fault


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started
        self.fault: OSError | None = None

    async def main_loop(self) -> None:
        try:
            self._tell()
        except OSError as error:  # nobody would know where it is
            self.fault = error
        else:
            await super().main_loop()
