"""An exchange: one ledger and the books, connected, one exchange of a ledger at a time.

Room: fleet. Imports psycopg, the ledger and its neighbours. Promises that a ledger begins where it stopped: over again
with books that are others or were restored from a backup, and not at all where the books know more of it than it does
itself. Each run of `push` has a name, which the ledger notes before it sends anything and the books with each batch; so
a ledger that does not know the name is not the one that pushed last.
"""

from collections.abc import Callable

from usage_ledger.fleet.schema import LOCK, Connection
from usage_ledger.fleet.server import FleetError
from usage_ledger.ledger.outbox import Outbox
from usage_ledger.ledger.pairing import Pushes

_LOCK = f"hashtextextended(%s, {LOCK})"

_RESTORED = (
    "the ledger was restored from a backup, or is a copy; push it with --as-new (a copy with a --source of its own), "
    "and then pull what it lacks"
)


def begin(
    connection: Connection,
    books: str,
    outbox: Outbox,
    tell: Callable[[str], None],
    as_new: bool = False,
    follower: str | None = None,
) -> None:
    """Begin to exchange rows of a ledger with the books (their id); `tell` a person why it takes longer.

    It ends with the connection. `as_new`: under an id that the books do not know yet. `follower`: the mark of who goes
    on doing so. Raises `FleetError` where the books know more of this ledger than it does itself, and `LedgerError`
    where somebody else goes on exchanging its rows with other books.
    """
    if as_new:
        outbox.renew()
    _wait_for_turn(connection, outbox.ledger, tell)
    there = _pushes(connection, outbox.ledger)
    outbox.begin_for(books, there, follower)
    _refuse_other_trail(connection, outbox)
    here = outbox.pushes
    if there.batches < here.batches:
        tell("the books are older than what was pushed to them: everything is pushed once more")
        outbox.start_over(there)
    elif there.batches > here.batches + 1 or there.run not in (None, here.run, outbox.state("run")):
        raise FleetError(f"the books have more of this ledger than it has pushed itself: {_RESTORED}")
    outbox.recognize(there)


def _wait_for_turn(connection: Connection, ledger: str, tell: Callable[[str], None]) -> None:
    """Wait until nobody else exchanges rows of this ledger: of two at once, the slower would bring back what was."""
    (is_ours,) = connection.execute(f"SELECT pg_try_advisory_lock({_LOCK})", (ledger,)).fetchone() or (False,)
    if not is_ours:
        tell("another push or pull of this ledger is under way; waiting for it")
        with connection.transaction():
            connection.execute("SET LOCAL lock_timeout = 0")
            connection.execute(f"SELECT pg_advisory_lock({_LOCK})", (ledger,))


def _pushes(connection: Connection, ledger: str) -> Pushes:
    found = connection.execute("SELECT batches, run::text FROM usage_sources WHERE ledger = %s", (ledger,)).fetchone()
    return Pushes() if found is None else Pushes(*found)


def _refuse_other_trail(connection: Connection, outbox: Outbox) -> None:
    """Raise `FleetError` where the books know corrections of this ledger that it does not know itself."""
    last = connection.execute(
        "SELECT position, hash FROM usage_revisions WHERE ledger = %s ORDER BY position DESC LIMIT 1", (outbox.ledger,)
    ).fetchone()
    if last is not None and outbox.revision_hash(last[0]) != last[1]:
        raise FleetError(f"entry {last[0]} of this ledger's trail is not the one that was pushed: {_RESTORED}")


def common_trail(connection: Connection, outbox: Outbox) -> int:
    """Return how many entries of the trail are in the books under the ledger's former ids already."""
    there = connection.execute(
        "SELECT position, hash FROM usage_revisions WHERE ledger = ANY(%s::uuid[]) ORDER BY position DESC",
        (outbox.formers,),
    )
    return next((position for position, hash_ in there if outbox.revision_hash(position) == hash_), 0)
