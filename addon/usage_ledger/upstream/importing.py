"""Importing: the bill from a saved file, into the ledger.

Room: upstream. Imports the standard library, the ledger and its neighbours in this room. A file is stored whole or not
at all.
"""

from datetime import UTC, datetime
from pathlib import Path

from usage_ledger.ledger.bill import Answer, Stored, store_buckets, store_keys
from usage_ledger.ledger.editing import Editor
from usage_ledger.ledger.moments import format_moment, now
from usage_ledger.upstream import answers, console
from usage_ledger.upstream.answers import BillError

FILE_LIMIT = 512 * 1024 * 1024


def load_file(editor: Editor, path: Path, replace: bool = False) -> tuple[str, Stored]:
    """Store a saved file; return what it is (`usage`, `costs` or `keys`) and what was stored.

    It is a CSV export of the Console or a saved answer of the Admin API, which its content tells.
    """
    try:
        status = path.stat()
        if status.st_size > FILE_LIMIT:
            raise BillError(f"{path} is larger than any bill")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BillError(f"{path} is not UTF-8 text") from error
    except OSError as error:
        raise BillError(f"cannot read {path}: {error.strerror}") from error
    try:
        # What a file says is as of when it was written, at the latest.
        as_of = min(now(), format_moment(datetime.fromtimestamp(max(0, status.st_mtime), UTC)))
        return _store_file(editor, path.name, text, as_of, replace)
    except BillError as error:
        raise BillError(f"{path}: {error}") from error


def _store_file(editor: Editor, name: str, text: str, as_of: str, replace: bool) -> tuple[str, Stored]:
    if text.lstrip()[:1] in ("{", "["):
        body = text.encode()
        kind = answers.kind_of(body)
        if kind == "keys":
            keys, _ = answers.key_page(body)
            return kind, store_keys(editor, Answer(kind, "api", name, text, as_of), keys)
        if kind is None:
            raise BillError(
                "it is JSON, but no answer of the Admin API that has any results (usage report, cost report, API keys)"
            )
        buckets, _ = (answers.usage_page if kind == "usage" else answers.cost_page)(body)
        return kind, store_buckets(editor, Answer(kind, "api", name, text, as_of), buckets, replace)
    kind = console.kind_of(text)
    if kind is None:
        raise BillError("it is no usage or cost export of the Console, and no answer of the Admin API")
    buckets = (console.usage_buckets if kind == "usage" else console.cost_buckets)(text)
    return kind, store_buckets(editor, Answer(kind, "csv", name, text, as_of), buckets, replace)
