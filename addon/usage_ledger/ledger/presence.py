"""Presence: which writers of a ledger are alive, told by locks and not by process ids.

Room: ledger. Imports the standard library and `paths`. A writer holds an exclusive `flock` on a file of its own in the
folder `<ledger>-writers` as long as it lives; the kernel releases it with the process, also after `kill -9`. Process
ids mean nothing to another container or user, a lock does. Promises that a living writer is never taken for a dead one:
what cannot be opened or locked counts as alive.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from usage_ledger.ledger.paths import make_private_folder, open_private_file

ALONE_SECONDS = 2.0
"""How long a writer waits for another one to get done with opening or leaving the ledger."""


def writers_folder(ledger: Path) -> Path:
    return ledger.with_name(ledger.name + "-writers")


def new_writer_id() -> str:
    """Return an id no other writer has: 12 hex digits."""
    return secrets.token_hex(6)


@contextmanager
def alone(ledger: Path) -> Iterator[None]:
    """Keep other writers from opening or leaving the ledger meanwhile: a lock on the folder that it is in.

    Raises OSError where the folder is gone, or where another writer stays in there for `ALONE_SECONDS`.
    """
    descriptor = os.open(ledger.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + ALONE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BlockingIOError(errno.EAGAIN, "another proxy is opening it and does not get done") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


class Presence:
    """This process's own mark beside a ledger, for the writer with this id."""

    def __init__(self, ledger: Path, writer_id: str) -> None:
        folder = writers_folder(ledger)
        make_private_folder(folder)
        self._path = folder / f"{writer_id}.lock"
        # Locked under a hidden name first: under its final name the file is never seen without its lock.
        hidden = folder / f".{writer_id}-{secrets.token_hex(4)}"
        self._descriptor = open_private_file(hidden, os.O_RDWR)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            hidden.rename(self._path)
        except BaseException:
            os.close(self._descriptor)
            with contextlib.suppress(OSError):
                hidden.unlink()
            raise

    def still_marked(self) -> bool:
        """Whether the mark is still in place (somebody may have removed or replaced the ledger's folder)."""
        return self._path.exists()

    def leave(self) -> None:
        """Take the mark away. Call it once: the descriptor may be somebody else's afterwards."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)


def is_alive(ledger: Path, writer_id: str) -> bool:
    """Whether the writer with this id still runs."""
    path = writers_folder(ledger) / f"{writer_id}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def forget_dead_writers(ledger: Path) -> None:
    """Remove the marks of writers that are gone, once their rows are settled."""
    for path in writers_folder(ledger).glob("*.lock"):
        if not is_alive(ledger, path.stem):
            path.unlink(missing_ok=True)
