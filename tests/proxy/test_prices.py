"""Costs as rows are written: exact, off the event loop, and never at the price of a row."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import genai_prices
import httpx
import pytest

from scripts.fake_console import NORMAL, FakeConsole
from scripts.real_proxy import ADDON, Proxy, mitmproxys, replay, rows_of, settled_rows, wait_until

SOURCE = f"genai-prices {genai_prices.__version__}"
Ask = Callable[..., httpx.Response]
Start = Callable[..., Proxy]


@pytest.mark.parametrize(
    ("scenario", "cost"),
    [
        ("normal", "0.001641"),  # Sonnet 4.6: 12 x 3 + 42 x 15 + 100 x 3.75 + 2,000 x 0.30 millionths
        ("json", "0.000044"),  # Haiku 4.5: 9 x 1 + 7 x 5
        ("iterations", "0.1955"),  # 60,600 x 3 + 530 x 15, and the advisor's (Opus 4.7) 700 x 5 + 90 x 25
    ],
)
def test_a_complete_row_is_written_with_its_cost(start_proxy: Start, ask: Ask, scenario: str, cost: str) -> None:
    proxy = start_proxy()
    ask(proxy, scenario)
    (row,) = settled_rows(proxy.ledger, 1)
    assert (row["total_cost"], row["price_source"]) == (cost, SOURCE)


def test_what_an_advisor_cost_stands_under_the_advisors_model(start_proxy: Start, ask: Ask) -> None:
    proxy = start_proxy()
    ask(proxy, "iterations")
    settled_rows(proxy.ledger, 1)
    with closing(sqlite3.connect(proxy.ledger)) as connection:
        told = dict(connection.execute("SELECT model, total_cost FROM usage_iterations WHERE model IS NOT NULL"))
    assert told["claude-opus-4-7"] == "0.00575"


@pytest.mark.parametrize(("scenario", "cost"), [("without_usage", None), ("rate_limited", "0")])
def test_what_is_not_complete_has_no_price(start_proxy: Start, ask: Ask, scenario: str, cost: str | None) -> None:
    proxy = start_proxy()
    ask(proxy, scenario)
    (row,) = settled_rows(proxy.ledger, 1)
    assert (row["total_cost"], row["price_source"]) == (cost, None)


def test_an_unknown_model_is_said_once_and_stays_unpriced(start_proxy: Start, ask: Ask, console: object) -> None:
    from scripts.fake_console import streaming

    body = [piece.replace(b"claude-sonnet-4-6", b"claude-opus-99") for piece in NORMAL]
    console.scenarios["unknown"] = streaming(body)  # type: ignore[attr-defined]
    proxy = start_proxy()
    for _ in range(3):
        ask(proxy, "unknown")
    rows = settled_rows(proxy.ledger, 3)
    assert {(row["usage_state"], row["total_cost"], row["price_source"]) for row in rows} == {("complete", None, None)}
    proxy.wait_for_line("does not know the model claude-opus-99")
    assert proxy.log.count("claude-opus-99. ") == 1


BROKEN = {
    "the price list cannot be loaded": "sys.modules['genai_prices'] = None",
    "the price list raises": "import genai_prices.types as t\nt.ModelInfo.get_prices = fail",
    "the pricer raises": "from usage_ledger.prices.pricer import Pricer\nPricer.price = fail",
    "all of the pricer raises": "from usage_ledger.prices.pricer import Pricer\nPricer.fill = fail",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_failure_of_pricing_costs_neither_bytes_nor_the_row(
    tmp_path: Path, start_proxy: Start, ask: Ask, what: str
) -> None:
    script = tmp_path / "broken.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ADDON.parent)!r})\n"
        "def fail(*args, **more):\n    raise RuntimeError('a bug')\n"
        f"{BROKEN[what]}\nfrom usage_ledger.proxy.addon import UsageLedger\naddons = [UsageLedger()]\n"
    )
    proxy = start_proxy(script=script)
    for _ in range(3):
        assert ask(proxy, "normal").extensions["raw"] == b"".join(NORMAL)
    rows = settled_rows(proxy.ledger, 3)
    assert [(row["usage_state"], row["total_tokens"], row["total_cost"]) for row in rows] == [
        ("complete", 2154, None)
    ] * 3
    proxy.wait_for_line("pricing failed")
    assert proxy.log.count("pricing failed") == 1
    assert "cannot write" not in proxy.log


def test_slow_pricing_delays_no_stream_and_no_request_that_goes_upstream(
    tmp_path: Path, start_proxy: Start, ask: Ask
) -> None:
    """Pricing stands still until the test lets go of it; meanwhile bytes pass, up to the end of the message."""
    script, gate = tmp_path / "slow.py", tmp_path / "gate"
    script.write_text(
        f"import sys, time, pathlib\nsys.path.insert(0, {str(ADDON.parent)!r})\n"
        "from usage_ledger.prices.pricer import Pricer\nreal = Pricer.price\n"
        "def slow(*args):\n"
        f"    while not pathlib.Path({str(gate)!r}).exists():\n        time.sleep(0.01)\n"
        "    return real(*args)\n"
        "Pricer.price = slow\nfrom usage_ledger.proxy.addon import UsageLedger\naddons = [UsageLedger()]\n"
    )
    proxy = start_proxy(script=script)
    headers = {"x-scenario": "normal", "x-api-key": "sk-ant-api03-x"}
    with httpx.stream("POST", f"{proxy.address}/v1/messages", headers=headers, json={}, timeout=20) as answer:
        seen = b""
        for piece in answer.iter_raw():
            seen += piece
            if seen == b"".join(NORMAL):
                break  # all of the body is here, while the row waits for its price
        assert rows_of(proxy.ledger)[0]["usage_state"] == "pending"
        gate.touch()
        for piece in answer.iter_raw() if not answer.is_stream_consumed else ():
            seen += piece
    (row,) = settled_rows(proxy.ledger, 1)
    assert seen == b"".join(NORMAL)
    assert row["total_cost"] == "0.001641"


def test_own_prices_hold_for_their_account(tmp_path: Path, start_proxy: Start, ask: Ask) -> None:
    prices = tmp_path / "mine.toml"
    prices.write_text('[[price]]\nmodel = "claude-sonnet-*"\naccount = "acme"\nmultiplier = 0.5\n')
    for account, cost, source in (("acme", "0.0008205", "mine.toml "), ("other", "0.001641", SOURCE)):
        proxy = start_proxy("--set", f"usage_prices={prices}", "--set", f"usage_account={account}")
        ask(proxy, "normal")
        proxy.stop()
        (row,) = rows_of(proxy.ledger, "account_id = ?", [account])
        assert row["total_cost"] == cost
        assert row["price_source"].startswith(source)
        assert f"own prices from {prices}" in proxy.log


def test_a_price_file_beside_the_ledger_is_found(ledger: Path, start_proxy: Start, ask: Ask) -> None:
    ledger.parent.mkdir(parents=True)
    (ledger.parent / "prices.toml").write_text('[[price]]\nmodel = "*"\nmultiplier = 2\n')
    proxy = start_proxy()
    ask(proxy, "normal")
    (row,) = settled_rows(proxy.ledger, 1)
    assert row["total_cost"] == "0.003282"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[[price]]\nmodel = "claude-*"\nmultiplyer = 1', "price 1: unknown field 'multiplyer'"),
        ('[[price]]\nmodel = "claude-*"\nmultiplier = -1', "price 1: multiplier is -1"),
        ('[[price]]\nmodel = "claude-*"\nmultiplier = 1\n' * 2, "price 2: its dates overlap those of price 1"),
        ('[[price]]\nmodel = "claud-*"\nmultiplier = 1', "price 1: model = 'claud-*' matches no model"),
        ("", "no [[price]]"),
    ],
)
@pytest.mark.parametrize("how", ["option", "environment", "beside"])
def test_a_bad_price_file_ends_mitmdump_before_it_takes_traffic(
    tmp_path: Path, content: str, says: str, how: str
) -> None:
    prices = tmp_path / ("prices.toml" if how == "beside" else "mine.toml")
    prices.write_text(content)
    environment = {"USAGE_LEDGER_DB": str(tmp_path / "usage.db")}
    if how == "environment":
        environment["USAGE_LEDGER_PRICES"] = str(prices)
    done = subprocess.run(
        [
            *(mitmproxys("mitmdump"), "-s", str(ADDON), "--set", f"confdir={tmp_path}"),
            *("--listen-host", "127.0.0.1", "-p", "0"),
            *(("--set", f"usage_prices={prices}") if how == "option" else ()),
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode != 0
    assert f"usage_prices: {prices}: " in done.stdout + done.stderr
    assert says in done.stdout + done.stderr
    assert not (tmp_path / "usage.db").exists()


def test_a_replay_is_priced_by_the_day_of_its_request(tmp_path: Path, start_proxy: Start, ask: Ask) -> None:
    capture, other = tmp_path / "capture.mitm", tmp_path / "other.db"
    proxy = start_proxy("-w", str(capture))
    ask(proxy, "normal")
    ask(proxy, "iterations")
    proxy.stop()
    replay(capture, other)
    priced = [(row["id"], row["total_cost"], row["price_source"]) for row in rows_of(other)]
    assert priced == [(row["id"], row["total_cost"], row["price_source"]) for row in rows_of(proxy.ledger)]
    assert [row[1] for row in priced] == ["0.001641", "0.1955"]


def test_the_price_list_is_loaded_beside_the_event_loop(tmp_path: Path) -> None:
    """Importing the addon does not load it; what warms it up does, on a thread of its own."""
    code = (
        f"import sys, threading; sys.path.insert(0, {str(ADDON.parent)!r})\n"
        "import usage_ledger.proxy.addon\n"
        "assert 'genai_prices' not in sys.modules\n"
        "from usage_ledger.prices import loading\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'genai_prices': print(threading.current_thread().name)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "loading.load()\n"
        "[thread.join() for thread in threading.enumerate() if thread is not threading.main_thread()]\n"
        "assert 'genai_prices.data' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("usage-ledger-prices\n", "")


def slow_list(tmp_path: Path, seconds: float) -> Path:
    """A script that loads the addon where the price list takes so long to load."""
    script = tmp_path / "slow_list.py"
    script.write_text(
        f"import sys, time\nsys.path.insert(0, {str(ADDON.parent)!r})\n"
        "class Slow:\n    def find_spec(self, name, *_):\n"
        f"        if name == 'genai_prices':\n            time.sleep({seconds})\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from usage_ledger.proxy.addon import UsageLedger\naddons = [UsageLedger()]\n"
    )
    return script


def test_a_price_list_that_never_loads_holds_up_neither_requests_nor_the_end(
    tmp_path: Path, console: FakeConsole, start_proxy: Start, ask: Ask
) -> None:
    proxy = start_proxy(script=slow_list(tmp_path, 3600))
    for _ in range(3):
        assert ask(proxy, "normal").extensions["raw"] == b"".join(NORMAL)
    assert console.received.total() == 3
    rows = settled_rows(proxy.ledger, 3)
    assert [(row["usage_state"], row["total_cost"]) for row in rows] == [("complete", None)] * 3
    proxy.wait_for_line("the price list takes long to load")
    proxy.stop()
    assert "does not answer" not in proxy.log


def test_a_price_list_that_loads_late_is_used_from_then_on(tmp_path: Path, start_proxy: Start, ask: Ask) -> None:
    proxy = start_proxy(script=slow_list(tmp_path, 4))
    ask(proxy, "normal")

    def priced() -> bool:
        ask(proxy, "normal")
        return any(row["total_cost"] == "0.001641" for row in rows_of(proxy.ledger))

    wait_until(priced)
    assert rows_of(proxy.ledger)[0]["total_cost"] is None


def test_with_own_prices_and_a_broken_price_list_traffic_passes_and_rows_are_kept(
    tmp_path: Path, start_proxy: Start, ask: Ask
) -> None:
    prices, script = tmp_path / "mine.toml", tmp_path / "broken.py"
    prices.write_text('[[price]]\nmodel = "claude-sonnet-*"\nmultiplier = 0.5\n')
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ADDON.parent)!r})\nsys.modules['genai_prices'] = None\n"
        "from usage_ledger.proxy.addon import UsageLedger\naddons = [UsageLedger()]\n"
    )
    proxy = start_proxy("--set", f"usage_prices={prices}", script=script)
    assert ask(proxy, "normal").extensions["raw"] == b"".join(NORMAL)
    (row,) = settled_rows(proxy.ledger, 1)
    assert (row["usage_state"], row["total_cost"]) == ("complete", None)


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("[[price"), Path.unlink], ids=["spoiled", "gone"])
def test_at_a_reload_prices_that_cannot_be_read_any_more_stay_in_use(
    tmp_path: Path, start_proxy: Start, ask: Ask, spoil: Callable[[Path], object]
) -> None:
    prices, script = tmp_path / "mine.toml", tmp_path / "usage.py"
    prices.write_text('[[price]]\nmodel = "claude-sonnet-*"\nmultiplier = 0.5\n')
    script.write_text(f"import sys\nsys.path.insert(0, {str(ADDON.parent)!r})\n{ADDON.read_text()}")
    proxy = start_proxy("--set", f"usage_prices={prices}", script=script)
    ask(proxy, "normal")
    spoil(prices)
    script.write_text(script.read_text() + "\n# saved again\n")
    wait_until(lambda: sum("own prices from" in line for line in proxy.lines) == 2)
    ask(proxy, "normal")
    rows = settled_rows(proxy.ledger, 2)
    assert [row["total_cost"] for row in rows] == ["0.0008205"] * 2
    assert proxy.log.count("the prices that were read before stay in use") == 1
    assert "Traceback" not in proxy.log


SETS_PRICES = """
from mitmproxy import ctx, exceptions

class SetsPrices:
    def request(self, flow):
        path = flow.request.headers.pop("x-prices", "")
        if path:
            try:
                ctx.options.update(usage_prices=path)
            except exceptions.OptionsError as error:
                print("refused:", error, flush=True)

addons.append(SetsPrices())
"""


def test_prices_that_are_set_while_it_runs_hold_from_then_on_and_bad_ones_do_not(
    tmp_path: Path, start_proxy: Start, ask: Ask
) -> None:
    lists = {name: tmp_path / f"{name}.toml" for name in ("half", "double", "bad")}
    for name, multiplier in (("half", "0.5"), ("double", "2"), ("bad", "-1")):
        lists[name].write_text(f'[[price]]\nmodel = "claude-sonnet-*"\nmultiplier = {multiplier}\n')
    script = tmp_path / "usage.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ADDON.parent)!r})\n{ADDON.read_text()}{SETS_PRICES}")
    proxy = start_proxy("--set", f"usage_prices={lists['half']}", script=script)
    for name in ("half", "double", "bad"):
        if name == "bad":
            lists["double"].unlink()  # that the good ones cannot be read any more is no reason to lose them
        ask(proxy, "normal", **{"x-prices": str(lists[name])})
        ask(proxy, "normal")
    rows = settled_rows(proxy.ledger, 6)
    assert [row["total_cost"] for row in rows] == ["0.0008205"] * 2 + ["0.003282"] * 4
    proxy.wait_for_line(f"refused: usage_prices: {lists['bad']}: price 1: multiplier is -1")
