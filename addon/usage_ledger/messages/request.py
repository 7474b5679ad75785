"""The request body: which model was asked for, whether a stream was, and whose session it is.

Room: messages. Imports the standard library, `msgspec` and its neighbours in this room. Request bodies reach many
megabytes, so only the fields needed are decoded (typed decoding skips the rest), and nothing of a prompt is kept.
"""

import json
import re

import msgspec

from usage_ledger.messages import lenient
from usage_ledger.messages.decoding import DecodingError, decoder_for
from usage_ledger.messages.text import text_or_none

BODY_LIMIT = 64 * 1024 * 1024
"""A request body that decodes to more than this many bytes is not read (the API takes 32 MB)."""

_SESSION = re.compile(r"_session_([0-9A-Za-z-]{1,64})$")


class RequestFields(msgspec.Struct):
    """What a ledger row takes from the request body."""

    model: str | None = None
    stream: bool = False
    session_id: str | None = None


class _Body(msgspec.Struct):
    """The fields of a request that the books need, each kept raw until its size is known."""

    model: msgspec.Raw = msgspec.Raw(b"null")
    stream: msgspec.Raw = msgspec.Raw(b"null")
    metadata: msgspec.Raw = msgspec.Raw(b"null")


_decoder = msgspec.json.Decoder(_Body)


def read_request(body: bytes, content_encoding: str = "") -> RequestFields:
    """Read a Messages API request body; a body that cannot be read yields empty fields, never an exception."""
    try:
        decoder = decoder_for(content_encoding, body[:6]) if content_encoding else None
        if decoder is not None:
            decoded = bytearray()
            for piece in decoder.feed(body):
                decoded += piece
                if len(decoded) > BODY_LIMIT:
                    return RequestFields()
            body = bytes(decoded)
    except DecodingError:
        return RequestFields()
    fields = lenient.decode(_decoder, body)
    if fields is None:
        return RequestFields()
    metadata = lenient.field(fields.metadata)
    user_id = metadata.get("user_id") if isinstance(metadata, dict) else None
    return RequestFields(
        model=text_or_none(lenient.field(fields.model), 256),
        stream=lenient.field(fields.stream) is True,
        session_id=session_of(user_id),
    )


def session_of(user_id: object) -> str | None:
    """Return the session that Claude Code puts into `metadata.user_id`, in either of its two forms.

    `user_<hash>_account_<uuid>_session_<uuid>`, or JSON text with `device_id`, `account_uuid` and `session_id`.
    """
    if not isinstance(user_id, str) or len(user_id) > 4096:
        return None
    if user_id.startswith("{"):
        try:
            tree = json.loads(user_id)
        except (ValueError, RecursionError):
            return None
        return text_or_none(tree.get("session_id"), 64) if isinstance(tree, dict) else None
    found = _SESSION.search(user_id)
    return found.group(1) if found else None
