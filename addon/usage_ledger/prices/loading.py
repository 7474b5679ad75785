"""Loading: the price list on its way into memory, for a program that has no time to wait for it.

Room: prices. Imports the standard library, and the price list on a thread of its own. Promises that nobody waits longer
than the first seconds of a process.
"""

import contextlib
import threading
import time


class _Loading:
    """The price list on its way into memory, on a thread of its own: it takes 0.1 s, and much longer on a slow disk.

    Whoever prices rows while requests wait for them gives it `SECONDS`; after that rows are written without a price
    until it is there.
    """

    SECONDS = 2.0

    def __init__(self) -> None:
        self._done = threading.Event()
        self._until = time.monotonic() + self.SECONDS
        threading.Thread(target=self._load, name="usage-ledger-prices", daemon=True).start()

    def _load(self) -> None:
        with contextlib.suppress(Exception):  # told by the first row that needs it
            from usage_ledger.prices import listed  # noqa: F401
        self._done.set()

    def is_done(self) -> bool:
        return self._done.wait(max(0.0, self._until - time.monotonic()))


_loading: _Loading | None = None


def load() -> None:
    """Begin to load the price list, once a process."""
    global _loading
    if _loading is None:
        _loading = _Loading()


def is_loaded() -> bool:
    """Whether the price list is there, or cannot be had; waits for it only in the first seconds."""
    load()
    return _loading is not None and _loading.is_done()
