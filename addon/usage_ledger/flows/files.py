"""Files: saved flows, one at a time, from whatever of a file can be read.

Room: flows. Imports mitmproxy and its neighbours in this room. Reads what `mitmdump -w` writes, of any version that
this mitmproxy knows, and HAR.
Promises that memory does not grow with the file (a HAR is one JSON text and has to fit), that every flow that can be
read is, also behind a damaged place, and that what cannot be read is told at the end as one `CaptureError`.
"""

import json
import mmap
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from mitmproxy import flow, version
from mitmproxy.io import compat, tnetstring
from mitmproxy.io.har import request_to_flow

from usage_ledger.flows.notes import note_not_connected

type Progress = Callable[[int], object]
"""Is told how many bytes were read since it was called last."""

_CHUNK = 1024 * 1024
_LENGTH = re.compile(rb"([1-9][0-9]{1,11}):")
_BEGINNING = re.compile(rb"(?<![0-9])[1-9][0-9]{1,11}:[0-9]{1,2}:[a-z_]{2,32}[;,]")
"""How a saved flow begins: its length, then the name of its first field. Parts of flows begin so too."""
_LONGEST_BEGINNING = 64
_OF_MITMPROXYS = re.compile(rb'"creator":\s*\{\s*"name":\s*"mitmproxy"')
_HEAD = 4096
_WAITED = re.compile(rb'"wait": ?(?!0(?:\.0*)?[,}\s])[0-9]')
_NO_FLOWS = "there is neither a flow of mitmproxy's nor a HAR in it"


class CaptureError(Exception):
    """A capture that cannot be read, or not all of it: one line for a person."""


class _UnreadableError(Exception):
    """A place that holds no flow. `end`: where the next one begins, None where nobody knows."""

    def __init__(self, what: str, end: int | None = None) -> None:
        super().__init__(what)
        self.end = end


def _ignore(_bytes: int) -> None:
    pass


def saved_flows(path: Path, progress: Progress = _ignore) -> Iterator[flow.Flow]:
    """Yield the flows of a capture, in its order; raise `CaptureError` after the last that could be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for somebody to write to it
            raise CaptureError(f"{path} is not a file")
        with path.open("rb") as file:
            head = file.read(4)
            if not head:
                raise CaptureError(f"{path} is empty: there is no flow in it")
            file.seek(0)
            if head.removeprefix(b"\xef\xbb\xbf").startswith(b"{"):
                yield from _flows_of_har(path, file)
            else:
                yield from _flows_of_file(path, file, progress)
    except OSError as error:
        raise CaptureError(f"cannot read {path}: {error.strerror or error}") from error


def is_har_of_mitmproxys(path: Path) -> bool:
    """Whether mitmproxy has made a HAR of its own traffic: it then names the server of each request that went to one.

    Where it has made one of another HAR, it knew of no server; answers then begin when their requests do, and before
    those end.
    """
    try:
        status = path.stat()
        return status.st_size > 0 and _is_har_of_mitmproxys(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return False


@lru_cache(maxsize=1)
def _is_har_of_mitmproxys(path: Path, _size: int, _changed: int) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _OF_MITMPROXYS.search(content, 0, _HEAD) is not None and _WAITED.search(content) is not None


@contextmanager
def judging(path: Path, saved: flow.Flow) -> Iterator[None]:
    """Turn whatever a flow of a capture makes its reader raise into a `CaptureError`.

    mitmproxy takes flows whose fields hold what no field can: a start in the year 56,901,688.
    """
    try:
        yield
    except Exception as error:
        raise CaptureError(f"{path}: flow {saved.id} is damaged ({error!r})") from error


def as_saved(saved: flow.Flow) -> bytes:
    """Return a flow as mitmproxy writes it into a file, one behind the other."""
    return tnetstring.dumps(saved.get_state())


def _flows_of_file(path: Path, file: BinaryIO, progress: Progress) -> Iterator[flow.Flow]:
    """Read a file as mitmproxy writes it: one tnetstring after the other, each a flow.

    Behind a break nobody knows where the next one begins. What looks like flows may stand within a body, as of a
    capture that somebody has sent; such ones are not yielded.
    """
    size = path.stat().st_size
    place = count = unsure = 0
    problem, is_sure = None, True
    while place < size:
        try:
            found, end = _flow_at(file, place, size)
        except _UnreadableError as error:
            problem = problem or (str(error), place, count)
            if error.end is not None:
                end = error.end
            else:
                end = _next_beginning(file, place + 1)
                is_sure = _are_flows(file, end, size)
        else:
            count += is_sure
            unsure += not is_sure
            if is_sure:
                yield found
        progress(min(end, size) - place)
        place = end
    if problem is not None:
        what, place, before = problem
        left = f"; {unsure:,} more may stand within a body, and are left out" if unsure else ""
        if not count:
            raise CaptureError(f"{path}: {what}{left}")
        rest = f", {count - before:,} of them behind that place" if count > before else ""
        raise CaptureError(f"{path}: {what} at byte {place:,}; {count:,} flow(s) could be read{rest}{left}")


def _flow_at(file: BinaryIO, place: int, size: int) -> tuple[flow.Flow, int]:
    """Return the flow that begins at a place, and where the next one begins."""
    file.seek(place)
    head = file.read(_LONGEST_BEGINNING)
    begins = place > 0 or _BEGINNING.match(head) is not None
    found = _LENGTH.match(head)
    if found is None:
        raise _UnreadableError("it is damaged" if begins else _NO_FLOWS)
    begin, length = place + found.end(), int(found[1])
    if begin + length >= size:
        raise _UnreadableError("it breaks off" if begins else _NO_FLOWS)
    file.seek(begin + length)
    if file.read(1) != b"}":  # looked at first: a length that is none may claim gigabytes
        raise _UnreadableError("it is damaged" if begins else _NO_FLOWS)
    file.seek(begin)
    state = file.read(length)
    end = begin + length + 1
    try:
        fields = tnetstring.parse(ord("}"), memoryview(state))
        assert isinstance(fields, dict)
        told = fields.get("version", fields.get(b"version"))
        if isinstance(told, int) and told > version.FLOW_FORMAT_VERSION:
            raise _UnreadableError(
                f"it is of a newer mitmproxy (flow format {told}; mitmproxy {version.VERSION} reads up to "
                f"{version.FLOW_FORMAT_VERSION})",
                end,
            )
        return flow.Flow.from_state(compat.migrate_flow(fields)), end
    except _UnreadableError:
        raise
    except Exception as error:
        raise _UnreadableError("there is a flow that cannot be read" if begins else _NO_FLOWS, end) from error


def _next_beginning(file: BinaryIO, place: int) -> int:
    """Return where something begins that may be a flow, at or behind a place; the file's end where nothing does."""
    while True:
        file.seek(place)
        chunk = file.read(_CHUNK)
        found = _BEGINNING.search(chunk)
        if found is not None:
            return place + found.start()
        if len(chunk) < _CHUNK:
            return place + len(chunk)
        place += len(chunk) - _LONGEST_BEGINNING


def _are_flows(file: BinaryIO, place: int, size: int) -> bool:
    """Whether one flow follows the other from a place to the file's end, or to one that is damaged.

    Flows within a body are followed by what else the body holds, or by the end of the flow that has it.
    """
    while place < size:
        file.seek(place)
        head = file.read(_LONGEST_BEGINNING)
        found = _LENGTH.match(head)
        if found is None or not _BEGINNING.match(head):
            return False
        end = place + found.end() + int(found[1])
        file.seek(end)
        if file.read(1) != b"}":
            return True
        place = end + 1
    return True


def _flows_of_har(path: Path, file: BinaryIO) -> Iterator[flow.Flow]:
    try:
        entries = json.load(file)["log"]["entries"]
        if not isinstance(entries, list):
            raise TypeError("entries")
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"{path} is no whole JSON, and so no HAR") from error
    except (LookupError, TypeError) as error:
        raise CaptureError(f"{path} is JSON, but no HAR") from error
    if not entries:
        raise CaptureError(f"{path} is empty: there is no flow in it")
    bad = 0
    names_servers = is_har_of_mitmproxys(path)
    for entry in entries:
        try:
            found = request_to_flow(entry)
            if names_servers and found.server_conn.address is None:
                note_not_connected(found)
        except Exception:  # noqa: BLE001 - entries that lack what a HAR has make mitmproxy raise anything
            bad += 1
        else:
            yield found
    if bad:
        raise CaptureError(f"{path}: {bad:,} of {len(entries):,} entries cannot be read")
