"""Text from outside, made safe to store, log and print.

Room: messages. Imports nothing but the standard library. Promises that what `clean` returns is one printable line of
bounded length that any terminal, log, CSV file and SQLite binding accepts.
"""

BOM = b"\xef\xbb\xbf"
"""The byte order mark of UTF-8, with which some programs begin what they send."""

LIMIT = 512
"""The most characters kept of one name, id or header."""


def clean(text: str, limit: int = LIMIT) -> str:
    """Return `text` as one printable line of at most `limit` characters.

    Control characters (terminal escapes, newlines, NUL) and lone surrogates (bytes that were not UTF-8) become U+FFFD.
    """
    if len(text) > limit:
        text = text[:limit]
    if text.isprintable():  # false for every control character, line separator and surrogate
        return text
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def text_or_none(value: object, limit: int = LIMIT) -> str | None:
    """Return a cleaned string, or None for anything that is not a non-empty string."""
    return clean(value, limit) if isinstance(value, str) and value else None
