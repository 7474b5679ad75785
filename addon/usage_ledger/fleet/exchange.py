"""An exchange: one ledger and the books, connected, one exchange of a ledger at a time.

Room: fleet. Imports psycopg, the ledger and its neighbours. Promises that a ledger begins where it stopped: over again
with books that are others or were restored from a backup, and not at all where the ledger lacks corrections of its own.
"""

from collections.abc import Callable

from usage_ledger.fleet.schema import Connection
from usage_ledger.fleet.server import FleetError
from usage_ledger.ledger.outbox import Outbox

_LOCK = "hashtextextended(%s, 7305804402131268210)"


def begin(connection: Connection, books: str, outbox: Outbox, tell: Callable[[str], None]) -> None:
    """Begin to exchange rows of a ledger with the books (their id); `tell` a person why it takes longer.

    It ends with the connection.
    """
    _wait_for_turn(connection, outbox.ledger, tell)
    outbox.begin_for(books)
    if _batches(connection, outbox.ledger) < outbox.batches:
        tell("the books are older than what was pushed to them: everything is pushed once more")
        outbox.start_over()


def _wait_for_turn(connection: Connection, ledger: str, tell: Callable[[str], None]) -> None:
    """Wait until nobody else exchanges rows of this ledger: of two at once, the slower would bring back what was."""
    (is_ours,) = connection.execute(f"SELECT pg_try_advisory_lock({_LOCK})", (ledger,)).fetchone() or (False,)
    if not is_ours:
        tell("another push or pull of this ledger is under way; waiting for it")
        connection.execute(f"SELECT pg_advisory_lock({_LOCK})", (ledger,))


def _batches(connection: Connection, ledger: str) -> int:
    found = connection.execute("SELECT batches FROM usage_sources WHERE ledger = %s", (ledger,)).fetchone()
    return 0 if found is None else int(found[0])


def refuse_restored(connection: Connection, outbox: Outbox) -> None:
    """Raise `FleetError` where the books know corrections of this ledger that it does not know itself."""
    last = connection.execute(
        "SELECT position, hash FROM usage_revisions WHERE ledger = %s ORDER BY position DESC LIMIT 1", (outbox.ledger,)
    ).fetchone()
    if last is not None and outbox.revision_hash(last[0]) != last[1]:
        raise FleetError(
            f"entry {last[0]} of this ledger's trail is not the one that was pushed: the ledger was restored from a "
            "backup, or is a copy; push it with --as-new, and then pull what it lacks"
        )
