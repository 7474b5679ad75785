"""The server: one connection to the fleet's books, made again where it breaks.

Room: fleet. Imports psycopg. Promises one line for whatever goes wrong, without a password in it.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors

from usage_ledger.fleet.schema import Connection, NotOurBooksError, migrate

CONNECT_SECONDS = 10

LOCK_SECONDS = 20
"""So long a statement waits for a lock that somebody else holds; then that is told, and it is tried again."""

logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # it warns, on stderr, of what is raised as well


class FleetError(Exception):
    """What cannot be done with these books: one line that says why."""


class GoneError(Exception):
    """The server cannot be reached, or has gone away: it may be back in a moment."""


class FullError(GoneError):
    """The server has no room: it takes somebody to make some."""


@contextmanager
def open_books(dsn: str, make: bool = False) -> Iterator[tuple[Connection, str]]:
    """Connect, and yield the connection and the id of the books; with `make`, make them if there are none.

    Raises `FleetError` and `GoneError`.
    """
    if _CUT_PASSWORD.match(dsn):
        raise FleetError("the DSN cannot be read; say %40 for @ and %2F for / in a password")
    with telling():
        try:
            connection = psycopg.connect(
                dsn,
                autocommit=True,
                connect_timeout=CONNECT_SECONDS,
                client_encoding="UTF8",
                application_name="usage-ledger",
                keepalives_idle=30,
                keepalives_interval=10,
            )
        except psycopg.ProgrammingError:
            # What libpq says of it quotes it, and so its password.
            raise FleetError("the DSN cannot be read; say postgresql://user@host/database or key=value pairs") from None
        with connection:
            connection.execute("SET TIME ZONE 'UTC'")
            connection.execute("SET DateStyle = 'ISO, YMD'")
            connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED")
            connection.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
            # The server gives up on a machine that has gone as soon, and with it the locks of that one.
            for name, value in (("idle", 30), ("interval", 10), ("count", 3)):
                connection.execute(f"SET tcp_keepalives_{name} = {value}")
            yield connection, migrate(connection, make)


@contextmanager
def telling() -> Iterator[None]:
    """Turn what psycopg raises into one line, told apart by whether it may pass."""
    try:
        yield
    except NotOurBooksError as error:
        raise FleetError(str(error)) from error
    except (errors.InsufficientPrivilege, errors.InvalidAuthorizationSpecification, errors.InvalidPassword) as error:
        raise FleetError(f"the server refuses: {_line(error)}") from None
    except (errors.InvalidCatalogName, errors.UndefinedTable, errors.UndefinedColumn) as error:
        raise FleetError(_line(error)) from None
    except errors.DiskFull as error:
        raise FullError(_line(error)) from None
    except errors.LockNotAvailable as error:
        raise GoneError(f"{_line(error)}: another session holds a lock, see pg_stat_activity") from None
    except errors.ReadOnlySqlTransaction as error:  # a standby, or a server that is to be spared for now
        raise GoneError(_line(error)) from None
    except psycopg.OperationalError as error:
        if _is_refusal(error):
            raise FleetError(f"the server refuses: {_line(error)}") from None
        raise GoneError(_line(error)) from None
    except psycopg.InterfaceError as error:  # the connection is closed
        raise GoneError(_line(error)) from None
    except psycopg.Error as error:
        raise FleetError(f"the server says: {_line(error)}") from error


_CUT_PASSWORD = re.compile(r"postgres(ql)?://([^@/]*:[^@/]*@[^?]*@|[^@/]*:(?!\d*/)[^@/:]*/.*@)", re.DOTALL)
"""A password with an @ or a / in it, the rest of which libpq takes for a host or a port, and tells."""

_REFUSALS = ("password authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")


def _is_refusal(error: psycopg.Error) -> bool:
    """Whether a connection was refused for good; libpq tells these by their words alone."""
    return error.sqlstate in ("28000", "28P01", "3D000") or any(words in str(error) for words in _REFUSALS)


def _line(error: Exception) -> str:
    """Return what a server says in one line, without its details, which may quote rows."""
    told = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    text = " ".join((told or str(error)).split())
    return re.sub(r"(password=)\S+|(://[^:@/\s]*:)[^@\s]+(?=@)", r"\1\2***", text)
