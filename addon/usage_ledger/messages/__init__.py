"""messages: from the bytes of a response to the verdict on what it used.

Sans-I/O: this room imports neither mitmproxy nor SQLite. Feed a `MessageReader` bytes, `finish` it, ask it for the
`Verdict`.
"""

from usage_ledger.messages.reader import MessageReader
from usage_ledger.messages.request import RequestFields, read_request
from usage_ledger.messages.text import clean, text_or_none
from usage_ledger.messages.usage import COUNT_NAMES, Counts, Iteration
from usage_ledger.messages.verdict import Ending, Reason, State, Verdict, body_not_captured

__all__ = [
    "COUNT_NAMES",
    "Counts",
    "Ending",
    "Iteration",
    "MessageReader",
    "Reason",
    "RequestFields",
    "State",
    "Verdict",
    "body_not_captured",
    "clean",
    "read_request",
    "text_or_none",
]
