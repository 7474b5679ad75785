"""Own prices: what a contract or a relay charges, from a TOML file.

Room: prices. Imports the standard library only. Promises that a file that cannot be meant so is a `PriceFileError` of
one line that names the place, and that numbers are taken exactly as they are written.
"""

import datetime
import hashlib
import os
import stat
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

ENVIRONMENT = "USAGE_LEDGER_PRICES"
BESIDE_LEDGER = "prices.toml"

TOKEN_PRICES = ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")
"""USD per million tokens; an entry with own prices has them all."""

FACTORS = ("batch", "fast", "us", "priority")
"""What multiplies an entry's own token prices for requests of that kind."""

_PATTERNS = ("model", "account")
_DATES = ("since", "until")
_NUMBERS = (*TOKEN_PRICES, "web_search", "multiplier", *FACTORS)
_FIELDS = frozenset({*_PATTERNS, *_DATES, *_NUMBERS, "unlisted"})

_LONGEST = 9
"""Digits before and after the decimal point of a number, at most."""

_LARGEST_FILE = 1024 * 1024
_LONGEST_MESSAGE = 500


class PriceFileError(Exception):
    """A price file that cannot be used; the message is one line and names the place."""

    def __init__(self, message: str) -> None:
        shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in message[:_LONGEST_MESSAGE])
        super().__init__(shown)


@dataclass(frozen=True)
class OwnPrice:
    """One `[[price]]`: which requests it is for, and what they cost.

    `multiplier` is of the list price; else `prices` has USD by `TOKEN_PRICES` and `web_search` (per 1,000). `since` is
    the first UTC day and `until` the first one after, as ISO text. `source` names the file and a hash of what it says.
    """

    place: str
    source: str
    model: str
    account: str | None
    since: str
    until: str
    multiplier: Decimal | None
    prices: dict[str, Decimal]
    factors: dict[str, Decimal]
    unlisted: bool

    def matches(self, model: str, account: str, day: str) -> bool:
        return (
            self.since <= day < self.until
            and matches(self.model, model)
            and (self.account is None or matches(self.account, account))
        )

    @property
    def rank(self) -> tuple[bool, int, int]:
        """How closely it says whom it is for: by an account, then by letters of the model, then of the account."""
        account = self.account or ""
        return (self.account is not None, len(self.model.replace("*", "")), len(account.replace("*", "")))


@dataclass(frozen=True)
class OwnPrices:
    """The entries of a price file, the closest first."""

    path: Path
    entries: tuple[OwnPrice, ...]

    def find(self, model: str, account: str, day: str) -> OwnPrice | None:
        """Return the entry for a model, an account and a UTC day (ISO): the closest one, else the first in the file."""
        return next((entry for entry in self.entries if entry.matches(model, account, day)), None)

    def check_models(self, is_known: Callable[[str], bool]) -> None:
        """Raise `PriceFileError` for a model pattern that means no model `is_known` knows: a typing error, most likely.

        An entry that says `unlisted = true` is spared.
        """
        for entry in self.entries:
            if not entry.unlisted and not is_known(entry.model):
                raise PriceFileError(
                    f"{entry.place}: model = {entry.model!r} matches no model of the price list; if it is written as "
                    "it should be, add unlisted = true"
                )


def price_file(given: str | os.PathLike[str] | None, ledger: Path) -> Path | None:
    """Return the price file: what is given, else `$USAGE_LEDGER_PRICES`, else one beside the ledger, else None."""
    chosen = str(given or "") or os.environ.get(ENVIRONMENT, "")
    try:
        path = Path(chosen).expanduser().absolute() if chosen else ledger.parent / BESIDE_LEDGER
        if not chosen and not os.path.lexists(path):
            return None
        str(path).encode()
    except RuntimeError as error:
        raise PriceFileError(f"{chosen}: there is no home folder for it; give its path without one") from error
    except UnicodeEncodeError as error:
        raise PriceFileError(f"{path}: its name is not UTF-8, as the ledger's text has to be") from error
    return path


def read_prices(path: Path) -> OwnPrices:
    """Read a price file; raise `PriceFileError` with the place of the first thing that cannot be meant so."""
    content = _content(path)
    try:
        document = tomllib.loads(content.decode("utf-8-sig"), parse_float=Decimal)
    except ArithmeticError as error:
        raise PriceFileError(f"{path}: it has a number that is none or too large") from error
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not TOML
        raise PriceFileError(f"{path}: {' '.join(str(error).split()) or 'nested too deeply'}") from error
    for name in document:
        if name != "price":
            raise PriceFileError(f"{path}: unknown field {name!r}; a price file is a list of [[price]]")
    tables = document.get("price", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise PriceFileError(f"{path}: it has no [[price]]")
    source = f"{path.name} {hashlib.sha256(content).hexdigest()[:12]}"
    entries = [_entry(f"{path}: price {number}", source, table) for number, table in enumerate(tables, 1)]
    _check_overlaps(entries)
    # Sorting is stable: of entries that are equally close, the first in the file stands first.
    ranked = sorted(entries, key=lambda entry: entry.rank, reverse=True)
    return OwnPrices(path, tuple(ranked))


def _content(path: Path) -> bytes:
    """Read a file of a sensible size; a pipe would keep us waiting."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise PriceFileError(f"{path}: it is not a file")
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise PriceFileError(f"{path}: {error.strerror or error}") from error
    if len(content) > _LARGEST_FILE:
        raise PriceFileError(f"{path}: it has more than {_LARGEST_FILE:,} bytes, which is no price file")
    return content


def _entry(place: str, source: str, table: dict[str, Any]) -> OwnPrice:
    for name in table:
        if name not in _FIELDS:
            raise PriceFileError(f"{place}: unknown field {name!r}; there are {', '.join(sorted(_FIELDS))}")
    if "model" not in table:
        raise PriceFileError(f"{place}: model is missing")
    texts = {name: _text(place, name, table[name]) for name in _PATTERNS if name in table}
    days = {name: _day(place, name, table[name]) for name in _DATES if name in table}
    numbers = {name: _number(place, name, table[name]) for name in _NUMBERS if name in table}
    unlisted = table.get("unlisted", False)
    if not isinstance(unlisted, bool):
        raise PriceFileError(f"{place}: unlisted is true or false")
    since, until = days.get("since", "0000"), days.get("until", "9999-99")
    if since >= until:
        raise PriceFileError(f"{place}: until ({until}) must be after since ({since})")
    multiplier = numbers.pop("multiplier", None)
    if multiplier is not None and numbers:
        raise PriceFileError(
            f"{place}: {next(iter(numbers))} cannot stand beside multiplier, which is of the list price"
        )
    missing = [name for name in TOKEN_PRICES if name not in numbers]
    if multiplier is None and missing:
        raise PriceFileError(f"{place}: {missing[0]} is missing; give {', '.join(TOKEN_PRICES)}, or a multiplier")
    return OwnPrice(
        place=place,
        source=source,
        model=texts["model"],
        account=texts.get("account"),
        since=since,
        until=until,
        multiplier=multiplier,
        prices={name: numbers[name] for name in (*TOKEN_PRICES, "web_search") if name in numbers},
        factors={name: numbers[name] for name in FACTORS if name in numbers},
        unlisted=unlisted,
    )


def _text(place: str, name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise PriceFileError(f"{place}: {name} is a name in quotes, in which * stands for any characters")
    return value


def _day(place: str, name: str, value: object) -> str:
    if not isinstance(value, datetime.date) or isinstance(value, datetime.datetime):
        raise PriceFileError(f"{place}: {name} is a day, like 2026-11-01 (UTC, without quotes)")
    return value.isoformat()


def _number(place: str, name: str, value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise PriceFileError(f"{place}: {name} is a number, like 3.75 (without quotes)")
    number = Decimal(value)
    if not number.is_finite() or number < 0:
        raise PriceFileError(f"{place}: {name} is {value}, but a price is a number from 0 on")
    if number.adjusted() >= _LONGEST or -int(number.as_tuple().exponent) > _LONGEST:
        raise PriceFileError(f"{place}: {name} has more than {_LONGEST} digits on one side of its point")
    return number


def _check_overlaps(entries: list[OwnPrice]) -> None:
    """Refuse two prices for one thing: the same patterns at the same time."""
    in_order = sorted(enumerate(entries), key=lambda each: (each[1].model, each[1].account or "", each[1].since))
    for (one, earlier), (other, later) in pairwise(in_order):
        same = (earlier.model, earlier.account) == (later.model, later.account)
        if same and later.since < earlier.until:
            first, second = (earlier, later) if one < other else (later, earlier)
            raise PriceFileError(
                f"{second.place}: its dates overlap those of {first.place.rpartition(': ')[2]}, "
                f"which is for the same model {second.model!r}"
            )


def matches(pattern: str, text: str) -> bool:
    """Whether a text is what a pattern says, in which `*` stands for any characters; takes no longer for odd ones."""
    start, *others = pattern.split("*")
    if not others:
        return text == pattern
    *middle, end = others
    if len(text) < len(start) + len(end) or not text.startswith(start) or not text.endswith(end):
        return False
    at, until = len(start), len(text) - len(end)
    for piece in middle:
        found = text.find(piece, at, until)
        if found < 0:
            return False
        at = found + len(piece)
    return True
