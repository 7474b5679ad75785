"""The spill: rows that a ledger in trouble could not take, in a private file beside it.

Room: ledger. Imports the standard library, `msgspec` and its neighbours in this room. One JSON object a line, appended
and synced. Promises that a row is in the spill or in the ledger at every moment: the file is removed only after all of
it was written, and writing a row again changes nothing.
"""

import contextlib
import glob
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from usage_ledger.ledger import presence
from usage_ledger.ledger.paths import open_private_file
from usage_ledger.ledger.record import Entry


class _Line(msgspec.Struct, omit_defaults=True):
    entry: Entry | None = None
    withdrawn: str | None = None


_decode = msgspec.json.Decoder(_Line).decode


def spill_path(ledger: Path, writer_id: str) -> Path:
    return ledger.with_name(f"{ledger.name}-spill-{writer_id}")


def append(path: Path, entries: list[Entry], withdrawn: list[str]) -> list[Entry]:
    """Add rows to a spill file and sync it; raise OSError where that cannot be.

    Returns the rows that cannot be written down at all, which is a fault of whoever made them.
    """
    lines, refused = [], []
    for entry in entries:
        try:
            lines.append(msgspec.json.encode(_Line(entry=entry)) + b"\n")
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError):
            refused.append(entry)
    lines += [msgspec.json.encode(_Line(withdrawn=each)) + b"\n" for each in withdrawn]
    data = b"".join(lines)
    descriptor = open_private_file(path, os.O_WRONLY | os.O_APPEND)
    with os.fdopen(descriptor, "ab") as file:
        end = file.tell()
        try:
            file.write(b"\n" + data if end else data)  # after a line that was cut a new one begins
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, end)  # a full disk may have taken half of it
            raise
    return refused


def read(path: Path, at_once: int, unreadable: list[bytes]) -> Iterator[tuple[list[Entry], list[str]]]:
    """Yield the rows of a spill file in batches.

    A line that is no JSON was cut by a crash or a full disk, and was never promised to anyone. One that is, but of
    another shape than this version knows, is added to `unreadable`.
    """
    entries: list[Entry] = []
    withdrawn: list[str] = []
    with path.open("rb") as file:
        for raw in file:
            try:
                line = _decode(raw)
            except msgspec.ValidationError:
                unreadable.append(raw)
                continue
            except msgspec.MsgspecError:
                continue
            if line.entry is not None:
                entries.append(line.entry)
            if line.withdrawn is not None:
                withdrawn.append(line.withdrawn)
            if len(entries) + len(withdrawn) >= at_once:
                yield entries, withdrawn
                entries, withdrawn = [], []
    if entries or withdrawn:
        yield entries, withdrawn


def put_aside(path: Path) -> Path:
    """Rename a spill file in which something is unreadable, so that it is kept and not read again; return its name."""
    aside = path.with_name(path.name.replace("-spill-", "-unreadable-"))
    path.rename(aside)
    return aside


def left_behind(ledger: Path, own_id: str) -> list[Path]:
    """Return the spill files to take back: this writer's own, and those of writers that are gone."""
    found = []
    for path in sorted(ledger.parent.glob(f"{glob.escape(ledger.name)}-spill-*")):
        writer_id = path.name.rpartition("-")[2]
        if writer_id == own_id or not presence.is_alive(ledger, writer_id):
            found.append(path)
    return found
