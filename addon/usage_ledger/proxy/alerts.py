"""Alerts: told when too many of the last requests came without certain usage.

Room: proxy. Imports the standard library; Apprise (extra `alerts`) where alerts are sent anywhere but to the log.
Promises one alert a window, that traffic never waits for one (each is sent on a thread of its own), and that its
address, which may hold a token, is in no log.
"""

import logging
import socket
import threading
import time
from collections import deque
from datetime import timedelta
from typing import NamedTuple

SLOTS = 60
"""A window is counted in so many parts, so that memory does not grow with the traffic."""

_log = logging.getLogger("usage_ledger")


class Rule(NamedTuple):
    """When to alert: in `window`, at least `least` flagged requests, and a share of more than `rate` (0 to 1)."""

    rate: float
    window: timedelta
    window_text: str
    least: int
    url: str


class AlertError(Exception):
    """Alerts that cannot be sent as asked for; the message is one line that does not have the address."""


class Alerts:
    """Counts requests as they are settled, on the event loop. Its time is monotonic, in seconds."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._slot_seconds = rule.window.total_seconds() / SLOTS
        self._slots: deque[list[int]] = deque(maxlen=SLOTS)  # each: its number, requests, flagged ones
        self._quiet_until = 0.0

    def count(self, flagged: bool) -> None:
        """Count a settled request, and alert where that passes the threshold."""
        now = time.monotonic()
        number = int(now // self._slot_seconds)
        if not self._slots or self._slots[-1][0] != number:
            self._slots.append([number, 0, 0])
        slot = self._slots[-1]
        slot[1] += 1
        slot[2] += flagged
        if flagged and now >= self._quiet_until:
            self._look(number, now)

    def _look(self, number: int, now: float) -> None:
        while self._slots[0][0] <= number - SLOTS:
            self._slots.popleft()
        requests, flagged = (sum(slot[place] for slot in self._slots) for place in (1, 2))
        if flagged >= self.rule.least and flagged / requests > self.rule.rate:
            self._quiet_until = now + self.rule.window.total_seconds()
            self._alert(requests, flagged)

    def _alert(self, requests: int, flagged: int) -> None:
        window = self.rule.window_text
        title = f"Claude usage: {flagged} of {requests} requests are flagged"
        text = (
            f"In the last {window}, {flagged} of {requests} requests ({100 * flagged / requests:.1f} %) through the "
            f"proxy on {socket.gethostname()} came without certain usage; that is more than "
            f"{100 * self.rule.rate:g} %. See: usage-ledger review --since {window}"
        )
        _log.warning(f"usage ledger: ALERT: {text}")
        if self.rule.url:
            threading.Thread(
                target=_send, args=(self.rule.url, title, text), name="usage-ledger-alert", daemon=True
            ).start()


def alerts_for(rule: Rule, former: Alerts | None) -> Alerts | None:
    """Return what alerts by a rule; where that is the same as before, what counted until now. None where it is off.

    Raises `AlertError` where its address cannot be used.
    """
    if former is not None and former.rule == rule:
        return former
    if rule.url:
        _check_address(rule.url)
    return Alerts(rule) if rule.rate else None


def _check_address(url: str) -> None:
    try:
        import apprise
    except ImportError as error:
        raise AlertError("it needs Apprise: pip install 'claude-usage-ledger[alerts]'") from error
    _silence_apprise()
    if not apprise.Apprise().add(url):
        raise AlertError("it is no address that Apprise knows (it begins like json://, slack:// or mailto://)")


def _send(url: str, title: str, text: str) -> None:
    """Send an alert, on a thread of its own."""
    sent = False
    try:
        import apprise

        _silence_apprise()
        target = apprise.Apprise()
        sent = bool(target.add(url) and target.notify(body=text, title=title, notify_type=apprise.NotifyType.WARNING))
    except Exception as error:  # noqa: BLE001 - whatever a service does, it is told here and nowhere else
        _log.warning(f"usage ledger: the alert could not be sent: {type(error).__name__}; it stands in this log alone")
        return
    if not sent:
        _log.warning("usage ledger: the alert could not be sent to usage_alert_url; it stands in this log alone")


def _silence_apprise() -> None:
    """Keep what Apprise and its HTTP libraries log, which may have the address, out of mitmproxy's log."""
    for name in ("apprise", "urllib3", "requests"):
        logging.getLogger(name).propagate = False
