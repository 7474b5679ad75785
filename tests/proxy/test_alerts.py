"""Alerts: sent once a window to a real webhook, told in the log, and never in the way of traffic."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from usage_ledger.proxy.alerts import Alerts, Rule

from scripts.real_proxy import Proxy, settled_rows, wait_until

Ask = Callable[..., httpx.Response]
Start = Callable[..., Proxy]


class Webhook:
    """A local webhook. `received` are the bodies; while `may_answer` is not set it keeps its callers waiting."""

    def __init__(self) -> None:
        self.received: list[dict[str, object]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                outer.may_answer.wait(20)
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> "Webhook":
        return self

    def __exit__(self, *_: object) -> None:
        self.may_answer.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.server.server_port}/TOKEN-OF-THE-HOOK"


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as hook:
        yield hook


def options(url: str, rate: str = "0.5", least: int = 2) -> list[str]:
    pairs = (f"usage_alert_rate={rate}", f"usage_alert_min={least}", f"usage_alert_url={url}")
    return [word for pair in pairs for word in ("--set", pair)]


def test_an_alert_arrives_once_a_window(start_proxy: Start, ask: Ask, webhook: Webhook) -> None:
    proxy = start_proxy("-v", *options(webhook.url))
    ask(proxy, "without_usage")
    ask(proxy, "normal")
    ask(proxy, "without_usage")  # 2 of 3
    wait_until(lambda: len(webhook.received) == 1)
    for _ in range(3):
        ask(proxy, "without_usage")
    settled_rows(proxy.ledger, 6)
    (alert,) = webhook.received
    assert alert["title"] == "Claude usage: 2 of 3 requests are flagged"
    assert "In the last 1h, 2 of 3 requests (66.7 %)" in str(alert["message"])
    assert "usage-ledger review --since 1h" in str(alert["message"])
    assert alert["type"] == "warning"
    assert proxy.log.count("ALERT") == 1
    assert "TOKEN-OF-THE-HOOK" not in proxy.log


def test_too_few_flagged_requests_alert_nobody(start_proxy: Start, ask: Ask, webhook: Webhook) -> None:
    proxy = start_proxy(*options(webhook.url, least=3))
    for scenario in ("without_usage", "without_usage", "normal"):
        ask(proxy, scenario)
    settled_rows(proxy.ledger, 3)
    assert "ALERT" not in proxy.log
    ask(proxy, "without_usage")
    wait_until(lambda: len(webhook.received) == 1)


def test_a_share_that_is_not_above_the_rate_alerts_nobody(start_proxy: Start, ask: Ask, webhook: Webhook) -> None:
    proxy = start_proxy(*options(webhook.url))
    for scenario in ("normal", "normal", "without_usage", "without_usage"):
        ask(proxy, scenario)
    settled_rows(proxy.ledger, 4)
    assert "ALERT" not in proxy.log


def test_a_webhook_that_does_not_answer_holds_nobody_up(start_proxy: Start, ask: Ask, webhook: Webhook) -> None:
    webhook.may_answer.clear()
    proxy = start_proxy(*options(webhook.url))
    for _ in range(2):
        ask(proxy, "without_usage")
    wait_until(lambda: len(webhook.received) == 1)
    for _ in range(5):
        assert ask(proxy, "normal").status_code == 200  # while the alert waits for its answer
    assert len(settled_rows(proxy.ledger, 7)) == 7
    assert "could not be sent" not in proxy.log


@pytest.mark.parametrize("how", ["refuses", "is down"])
def test_a_webhook_that_fails_is_told_in_one_line_without_its_address(
    start_proxy: Start, ask: Ask, webhook: Webhook, how: str
) -> None:
    webhook.status = 500
    url = webhook.url if how == "refuses" else "json://127.0.0.1:9/TOKEN-OF-THE-HOOK"
    proxy = start_proxy(*options(url))
    for _ in range(3):
        ask(proxy, "without_usage")
    line = proxy.wait_for_line("could not be sent")
    assert "it stands in this log alone" in line
    assert proxy.log.count("could not be sent") == 1
    assert "TOKEN-OF-THE-HOOK" not in proxy.log
    assert "Traceback" not in proxy.log


def test_without_an_address_the_log_has_the_alert(start_proxy: Start, ask: Ask) -> None:
    proxy = start_proxy("--set", "usage_alert_rate=0.1", "--set", "usage_alert_min=1")
    ask(proxy, "without_usage")
    proxy.wait_for_line("ALERT: In the last 1h, 1 of 1 requests (100.0 %)")


def alerts(window: timedelta = timedelta(minutes=1), **more: object) -> Alerts:
    rule = {"rate": 0.1, "window": window, "window_text": "1m", "least": 2, "url": "", **more}
    return Alerts(Rule(**rule))  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_000.0]
    monkeypatch.setattr("usage_ledger.proxy.alerts.time.monotonic", lambda: now[0])
    return now


def test_what_is_older_than_the_window_does_not_count(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "usage_ledger")
    watch = alerts()
    watch.count(flagged=True)
    clock[0] += 61
    watch.count(flagged=True)
    assert caplog.text == ""
    clock[0] += 58
    watch.count(flagged=True)
    assert "2 of 2 requests" in caplog.text


def test_the_next_window_has_its_own_alert(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "usage_ledger")
    watch = alerts()
    for _ in range(600):
        watch.count(flagged=True)
        clock[0] += 0.3  # three windows
    assert caplog.text.count("ALERT") == 3


def test_memory_does_not_grow_with_the_traffic(clock: list[float]) -> None:
    watch = alerts(least=10**9)
    for _ in range(10_000):
        watch.count(flagged=True)
        clock[0] += 0.1
    assert len(watch._slots) <= 60


@pytest.mark.parametrize(("rate", "flagged"), [(0.29, 29), (0.57, 57), (1.0, 100)])
def test_a_share_that_is_the_rate_itself_is_not_above_it(
    clock: list[float], caplog: pytest.LogCaptureFixture, rate: float, flagged: int
) -> None:
    caplog.set_level(logging.WARNING, "usage_ledger")
    watch = alerts(rate=rate)
    for number in range(100):
        watch.count(flagged=number >= 100 - flagged)
    assert caplog.text == ""
