"""Serving: a ledger in Datasette, on this machine alone, read-only.

Room: web. Imports Datasette, uvicorn and the ledger's reading side.
"""

import logging
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import uvicorn
from datasette.app import Datasette
from datasette.database import Database
from datasette.plugins import pm

from usage_ledger.ledger.reading import connect_for_reading
from usage_ledger.web.pages import LEDGER, Pages

HOST = "127.0.0.1"
_HERE = Path(__file__).parent


class _Ledger(Database):  # type: ignore[misc]  # Datasette tells no types
    """A ledger, opened as every reading command opens it."""

    def connect(self, write: bool = False) -> sqlite3.Connection:
        if write:
            raise sqlite3.OperationalError("a ledger is only read here")
        connection = connect_for_reading(Path(self.path))
        self._all_file_connections.append(connection)
        return connection


def serve(path: Path, listener: socket.socket, started: Callable[[], None]) -> None:
    """Serve a ledger on a socket until somebody ends it; call `started` once it answers."""
    pm.register(Pages(path), name="usage-ledger")
    datasette = Datasette(
        [],
        static_mounts=[("usage", str(_HERE / "static"))],
        metadata={"title": "claude-usage-ledger", "extra_css_urls": ["/usage/usage.css"]},
        settings={
            "allow_download": False,
            "suggest_facets": False,
            "facet_time_limit_ms": 1_000,
            "sql_time_limit_ms": 5_000,
            "default_page_size": 50,
            "num_sql_threads": 4,
            "truncate_cells_html": 400,
        },
    )
    datasette.add_database(_Ledger(datasette, path=str(path)), name=LEDGER)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(datasette.app(), log_level="error", access_log=False, lifespan="on")
    server = _Server(config, started)
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()
