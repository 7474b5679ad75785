"""The options of the addon: declared once, checked whole, handed on as plain settings.

Room: proxy. Imports mitmproxy, the flows and the prices room, and the ledger's paths. Promises that a value that cannot
work is an `OptionsError` that names it, before any traffic is touched.
"""

import dataclasses
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

from mitmproxy import exceptions, flowfilter
from mitmproxy.addonmanager import Loader
from mitmproxy.options import Options
from mitmproxy.utils import human

from usage_ledger.flows.metered import DEFAULT_FILTER, parsed_filter
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.moments import as_span
from usage_ledger.ledger.paths import ledger_path
from usage_ledger.prices.own import PriceFileError, price_file, read_prices
from usage_ledger.prices.pricer import Pricer
from usage_ledger.proxy.alerts import AlertError, Alerts, Rule, alerts_for

CHOICES = {
    "usage_durability": ("full", "normal"),
    "usage_on_ledger_error": ("pass", "block"),
    "usage_capture": ("auto", "always", "never"),
}

_CREDENTIALS = ("x-api-key", "authorization", "proxy-authorization", "cookie")


_log = logging.getLogger("usage_ledger")


def declare(loader: Loader) -> None:
    """Declare the options; their names and defaults are the project's contract."""
    loader.add_option(
        "usage_db", str, "", "Ledger path. Empty: $USAGE_LEDGER_DB, else usage-ledger/usage.db in the user data folder."
    )
    loader.add_option("usage_filter", str, DEFAULT_FILTER, "Which flows are metered, asked once, on the request.")
    loader.add_option("usage_account", str, "", "Account id for every row. Empty: derived from response or key.")
    loader.add_option(
        "usage_tag_header", str, "", "A request header stored as the row's tag, and removed before it goes upstream."
    )
    loader.add_option(
        "usage_durability",
        str,
        "full",
        "full: fsync each commit (survives power loss). normal: survives process death.",
        choices=CHOICES["usage_durability"],
    )
    loader.add_option(
        "usage_on_ledger_error",
        str,
        "pass",
        "When the ledger cannot be written. pass: let traffic through and keep rows. block: answer 503 until it can.",
        choices=CHOICES["usage_on_ledger_error"],
    )
    loader.add_option(
        "usage_capture",
        str,
        "auto",
        "Keep streamed bodies on the flow, so that saved flows can be replayed. auto: where flows are saved or shown.",
        choices=CHOICES["usage_capture"],
    )
    loader.add_option(
        "usage_capture_limit", str, "32m", "The most that is kept of one flow's body; a longer one is dropped."
    )
    loader.add_option(
        "usage_prices",
        str,
        "",
        "Own prices (TOML). Empty: $USAGE_LEDGER_PRICES, else prices.toml beside the ledger if there is one.",
    )
    loader.add_option(
        "usage_alert_rate", str, "0", "Alert when the flagged share of the window exceeds this (0 to 1; 0: off)."
    )
    loader.add_option("usage_alert_window", str, "1h", "The window in which requests are counted: 90m, 1h, 7d.")
    loader.add_option("usage_alert_min", str, "5", "Flagged requests in the window below which no alert is sent.")
    loader.add_option(
        "usage_alert_url", str, "", "Where alerts go besides the log: an Apprise URL (needs the extra `alerts`)."
    )


def refuse_what_mitmproxy_cannot_set(deferred: dict[str, Any]) -> None:
    """Say it where an option of ours was given several times, or without a value.

    mitmproxy finds that out once the script is loaded, and then leaves the whole script out without a word: traffic
    would pass unmetered. Here it is an error at start-up, which ends mitmdump.
    """
    for name in [name for name in deferred if name.startswith("usage_")]:
        values = getattr(deferred[name], "val", None)
        if isinstance(values, list) and len(values) != 1:
            del deferred[name]
            what = f"is given several times: {', '.join(values)}" if values else "is given without a value"
            _log.error(f"{name} {what}. Say --set {name}=VALUE once")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options as the addon uses them. `capture_limit` is in bytes; 0 keeps nothing."""

    ledger: Path
    flow_filter: flowfilter.TFilter
    account: str
    tag_header: str
    durability: str
    block: bool
    capture_limit: int
    streams_large_bodies: bool
    prices: str
    pricer: Pricer
    alerts: Alerts | None


def settings_from(options: Options, former: Settings | None = None, reads_prices: bool = True) -> Settings:
    """Check all options and return them as settings; raise `OptionsError` for the first that cannot work.

    Without `reads_prices` the former prices stay: a file that is being edited is read when it is meant. Prices that
    were read by the same options before stay in use where their file cannot be read any more: that is no reason to stop
    the traffic of a proxy that runs.
    """
    # What has a view (mitmproxy, mitmweb) keeps all flows, shows their bodies, and saves them when it is told to.
    keeps = bool(options.save_stream_file or options.hardump) or "view_filter" in options
    for name, choices in CHOICES.items():
        if getattr(options, name) not in choices:  # mitmproxy checks choices only where it shows them
            raise exceptions.OptionsError(f"{name}: {getattr(options, name)!r} is none of {', '.join(choices)}")
    capture = options.usage_capture == "always" or (options.usage_capture == "auto" and keeps)
    limit = _size("usage_capture_limit", options.usage_capture_limit)
    ledger = _ledger(options.usage_db)
    return Settings(
        ledger=ledger,
        flow_filter=_filter(options.usage_filter),
        account=options.usage_account,
        tag_header=_header(options.usage_tag_header),
        durability=options.usage_durability,
        block=options.usage_on_ledger_error == "block",
        capture_limit=limit if capture else 0,
        streams_large_bodies=bool(options.stream_large_bodies),
        prices=options.usage_prices,
        alerts=_alerts(options, former),
        pricer=former.pricer if former and not reads_prices else _pricer(options.usage_prices, ledger, former),
    )


def _ledger(value: str) -> Path:
    try:
        path = ledger_path(value)
    except LedgerError as error:
        raise exceptions.OptionsError(f"usage_db: {error}") from error
    if path.is_dir():
        raise exceptions.OptionsError(f"usage_db: {path} is a folder; give the path of a file in it")
    return path


def _alerts(options: Options, former: Settings | None) -> Alerts | None:
    try:
        rate = float(options.usage_alert_rate)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise exceptions.OptionsError(f"usage_alert_rate: {options.usage_alert_rate!r} is no share from 0 to 1")
    try:
        window = as_span(options.usage_alert_window)
    except ValueError:
        window = timedelta()
    if not window:
        raise exceptions.OptionsError(
            f"usage_alert_window: {options.usage_alert_window!r} is no span of time; say 90m, 1h or 7d"
        )
    least = options.usage_alert_min
    if not (least.isascii() and least.isdigit() and 0 < len(least) < 10 and int(least)):
        raise exceptions.OptionsError(f"usage_alert_min: {least!r} is not a number from 1 on")
    rule = Rule(rate, window, options.usage_alert_window, int(least), options.usage_alert_url)
    try:
        return alerts_for(rule, former.alerts if former is not None else None)
    except AlertError as error:
        raise exceptions.OptionsError(f"usage_alert_url: {error}") from None  # mitmproxy would print both


def _pricer(value: str, ledger: Path, former: Settings | None) -> Pricer:
    try:
        path = price_file(value, ledger)
        own = None if path is None else read_prices(path)
        if own is not None:
            own.check_models(_may_be_listed)
    except PriceFileError as error:
        if former is not None and (former.prices, former.ledger) == (value, ledger):
            _log.error(f"usage ledger: usage_prices: {error}; the prices that were read before stay in use")
            return former.pricer
        raise exceptions.OptionsError(f"usage_prices: {error}") from None  # mitmproxy would print both
    return Pricer(own)


def _may_be_listed(pattern: str) -> bool:
    """Whether the price list knows such a model. It is loaded only where there is a file to check, before any traffic.

    Where it cannot be loaded, which rows tell, that is no reason to let no traffic pass.
    """
    try:
        from usage_ledger.prices import listed

        return listed.knows(pattern)
    except Exception:  # noqa: BLE001 - whatever a broken installation raises
        return True


def _filter(expression: str) -> flowfilter.TFilter:
    try:
        return parsed_filter(expression)
    except ValueError as error:
        raise exceptions.OptionsError(f"usage_filter: {error}") from error


def _header(name: str) -> str:
    if name and not all(character.isalnum() or character in "!#$%&'*+-.^_`|~" for character in name):
        raise exceptions.OptionsError(f"usage_tag_header: {name!r} is not the name of a header")
    if name.lower() in _CREDENTIALS:
        raise exceptions.OptionsError(f"usage_tag_header: {name!r} carries a secret, which a ledger must not hold")
    return name


def _size(option: str, value: str) -> int:
    try:
        size = human.parse_size(value)
    except ValueError as error:
        raise exceptions.OptionsError(
            f"{option}: {value!r} is not a size; say 32m, 500k or a number of bytes"
        ) from error
    if not size or size < 0:
        raise exceptions.OptionsError(f"{option}: {value!r} is not a size above 0")
    return size
