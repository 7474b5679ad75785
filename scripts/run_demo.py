"""The demo: eight exchanges through the real proxy, their rows, a CSV, a replay that changes nothing, and the bill.

Everything runs on 127.0.0.1: a fake Console upstream, the real mitmdump with the addon, the real `anthropic` SDK as
client, and a fake Admin API that bills what the Console produced, whether a stream told it or not. Whatever ends it,
Ctrl-C too, no process stays behind. `--save FOLDER` keeps the capture and its expected rows, which is how those in
`data/` are made: `./scripts/demo --save data`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.fake_admin import ADMIN_KEY, FakeAdmin
from scripts.fake_console import FakeConsole, Served
from scripts.real_proxy import NOT_THE_CAPTURES, Proxy, replay, rows_of, wait_until, without

if TYPE_CHECKING:
    import anthropic

MODEL = "claude-sonnet-4-6"
KEYS = {team: f"sk-ant-api03-{team}-demo-key-of-no-value-whatsoever-igAA" for team in ("R2D", "C3P", "BB8", "K2S")}
"""Each team has a key of its own, so that a hole in its books is told from another's."""


def say(line: str = "") -> None:
    print(line, flush=True)


def stream(client: "anthropic.Anthropic", scenario: str, leave_after: int | None = None) -> str:
    """Ask for a stream and return its text; with `leave_after`, leave after so many deltas."""
    words = []
    with client.messages.create(
        model=MODEL,
        max_tokens=100,
        messages=[{"role": "user", "content": "Do the books match?"}],
        stream=True,
        extra_headers={"x-scenario": scenario},
    ) as events:
        for event in events:
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                words.append(event.delta.text)
            if len(words) == leave_after:
                return f"left after {leave_after} deltas"
    return "".join(words)


def ask(client: "anthropic.Anthropic", scenario: str) -> str:
    answer = client.messages.create(
        model=MODEL,
        max_tokens=100,
        messages=[{"role": "user", "content": "Do the books match?"}],
        extra_headers={"x-scenario": scenario},
    )
    return "".join(block.text for block in answer.content if block.type == "text")


def of_team(client: "anthropic.Anthropic", team: str) -> "anthropic.Anthropic":
    return client.with_options(api_key=KEYS[team])


EXCHANGES: tuple[tuple[str, Callable[["anthropic.Anthropic"], str]], ...] = (
    ("a normal stream", lambda client: stream(client, "normal")),
    ("a stream without usage", lambda client: stream(of_team(client, "C3P"), "without_usage")),
    ("a stream the client leaves", lambda client: stream(of_team(client, "BB8"), "endless", leave_after=5)),
    ("a stream that upstream breaks", lambda client: stream(of_team(client, "K2S"), "breaks")),
    ("a gzipped stream", lambda client: stream(client, "gzipped")),
    ("a stream with iterations", lambda client: stream(client, "iterations")),
    ("a JSON answer", lambda client: ask(client, "json")),
    ("an HTTP 429", lambda client: ask(client, "rate_limited")),
)


def main(folder: Path) -> int:
    """Run the demo, with all that it makes in a folder."""
    import anthropic  # takes two seconds, which those who want no more than the keys need not wait

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    ledger, capture, table = folder / "usage.db", folder / "capture.mitm", folder / "usage.csv"
    with FakeConsole() as console, Proxy(console.address, ledger, "-w", str(capture)) as proxy:
        say(f"mitmdump -s addon/usage.py listens at {proxy.address}, the fake Console at {console.address}")
        say()
        client = anthropic.Anthropic(
            api_key=KEYS["R2D"],
            base_url=proxy.address,
            max_retries=0,
            timeout=20,
        )
        for title, exchange in EXCHANGES:
            try:
                outcome = exchange(client)
            except Exception as error:  # noqa: BLE001 - a broken stream raises what the HTTP library likes
                outcome = f"{type(error).__name__}"
            say(f"  {title:<30} {outcome}")
        client.close()
        proxy.wait_for_line("client_disconnected")
        received = console.received.total()
        wait_until(lambda: len(console.served) == received)  # the Console has noticed that the client left
        served = list(console.served)
    rows = rows_of(ledger)
    say()
    say(f"$ usage-ledger rows          # {received} requests reached the Console, {len(rows)} rows are in the ledger")
    tool("rows", "--db", str(ledger))
    say()
    say("$ usage-ledger export > usage.csv")
    table.write_text(tool_output("export", "--db", str(ledger)), encoding="utf-8")
    say(f"  {len(table.read_text(encoding='utf-8').splitlines()) - 1} rows, {table.stat().st_size} bytes")
    say()
    say("$ mitmdump -nr capture.mitm -s addon/usage.py")
    replay(capture, ledger)
    same = rows_of(ledger) == rows
    say(f"  the replay {'changed nothing' if same else 'CHANGED THE LEDGER'}")
    if len(sys.argv) > 2 and sys.argv[1] == "--save":
        save(capture, Path(sys.argv[2]))
    matches = reconcile(ledger, served)
    return 0 if same and matches and len(rows) == received == len(EXCHANGES) else 1


def reconcile(ledger: Path, served: list[Served]) -> bool:
    """Fetch what upstream billed, fill the holes in from it, and return whether the books match to the last token."""
    now = datetime.now(UTC)
    days = ("--since", f"{now - timedelta(days=1):%Y-%m-%d}", "--until", f"{now + timedelta(days=2):%Y-%m-%d}")
    with FakeAdmin(lambda: served) as admin:
        for what in (("keys",), ("usage", *days), ("costs", *days)):
            say()
            say(f"$ usage-ledger fetch {what[0]}")
            tool("fetch", *what, "--db", str(ledger), "--base-url", admin.address)
    for step in (("--by", "key,model"), ("--by", "key,model", "--apply")):
        say()
        say(f"$ usage-ledger reconcile {' '.join(step)}")
        code = tool("reconcile", *days, "--open", *step, "--db", str(ledger), codes=(0, 1))
    return code == 0


def save(capture: Path, folder: Path) -> None:
    """Keep the capture, and beside it the columns that a replay of it must yield."""
    shutil.copyfile(capture, folder / "demo.mitm")
    with tempfile.TemporaryDirectory() as name:
        ledger = Path(name) / "usage.db"
        replay(capture, ledger)
        rows = [without(row, NOT_THE_CAPTURES) for row in rows_of(ledger)]
    (folder / "demo.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    say(f"  saved in {folder}")


def tool(*arguments: str, codes: tuple[int, ...] = (0,)) -> int:
    environment = {**os.environ, "ANTHROPIC_ADMIN_KEY": ADMIN_KEY}
    done = subprocess.run([sys.executable, "-m", "usage_ledger", *arguments], env=environment, check=False)
    if done.returncode not in codes:
        raise RuntimeError(f"usage-ledger {arguments[0]} ended with {done.returncode}")
    return done.returncode


def tool_output(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "usage_ledger", *arguments], check=True, stdout=subprocess.PIPE)
    return done.stdout.decode()


class StoppedError(BaseException):
    """Ctrl-C. Python ends a program by a signal, and not with its code, where a KeyboardInterrupt came in an `exec`."""


def run() -> int:
    """Run the demo; 130 where Ctrl-C ended it, whatever that made fail on the way out."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        raise StoppedError

    try:
        with tempfile.TemporaryDirectory(prefix="usage-ledger-demo-") as name:
            tempfile.tempdir = name  # so that what is half-made when Ctrl-C comes goes with the rest
            signal.signal(signal.SIGINT, stop)
            return main(Path(name))
    except BaseException:
        if stopped:
            return 130
        raise


if __name__ == "__main__":
    sys.exit(run())
