"""The real mitmdump with the addon, as a process: for the demo, the tests and the bench."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from scripts.preloaded import PROGRAMS, Program

ROOT = Path(__file__).parent.parent
ADDON = ROOT / "addon" / "usage.py"
type Process = "subprocess.Popen[str] | Program"
_LISTENING = re.compile(r"listening at (?:https?://)?\*?[^ ]*?:(\d+)")


def mitmproxys(program: str) -> str:
    """Return one of mitmproxy's programs: the one that belongs to this Python."""
    return str(Path(sys.executable).with_name(program))


def start_anew(command: Sequence[str]) -> Process:
    """Start one of mitmproxy's programs as a shell does; both its outputs are in one pipe."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment(),
    )


def start_preloaded(command: Sequence[str]) -> Process:
    """The same without the time that it takes to load mitmproxy, where the command is one of its programs itself."""
    if Path(command[0]).name not in PROGRAMS:
        return start_anew(command)
    return Program(command, environment(), merged=True)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}


starter: Callable[[Sequence[str]], Process] = start_anew
"""How proxies and replays are started; the tests set it to `start_preloaded`."""


class Proxy:
    """A running mitmdump. `log` is what it said so far; `port` where it listens on 127.0.0.1."""

    def __init__(
        self,
        upstream: str,
        ledger: Path,
        *arguments: str,
        mode: str | None = None,
        script: Path | None = ADDON,
        strategy: str = "lazy",
        program: str = "mitmdump",
        inside: Sequence[str] = (),
        user: tuple[int, int] | None = None,
    ) -> None:
        """Start it.

        `program` may be another of mitmproxy's, `inside` is a command that runs it (a container), `user` a user and
        group id to run it as.
        """
        self.ledger = ledger
        self.lines: list[str] = []
        self.port = 0
        self._changed = threading.Condition()
        self._settings = tempfile.TemporaryDirectory(prefix="mitmproxy-")
        if user is not None:
            os.chown(self._settings.name, *user)
            # The one right it keeps, to read, is for a Python that is installed where other users have no business.
            rights = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
            inside = ("setpriv", f"--reuid={user[0]}", f"--regid={user[1]}", "--clear-groups", *rights)
        command = [
            *inside,
            mitmproxys(program),
            *("--mode", mode or f"reverse:{upstream}", "--listen-host", "127.0.0.1", "-p", "0"),
            *("--set", f"connection_strategy={strategy}", "--set", "ssl_insecure=true"),
            *("--set", f"confdir={self._settings.name}", "--set", f"usage_db={ledger}"),
            *(("-s", str(script)) if script else ()),
            *arguments,
        ]
        # What stands in for the addon's script may have its own ways with what is loaded.
        self._start(command, starter if script == ADDON else start_anew)

    def _start(self, command: Sequence[str], starter: Callable[[Sequence[str]], Process]) -> None:
        """Start the process on a thread: Ctrl-C in the midst of it would leave one that nobody knows of."""
        started: list[Process] = []

        def start() -> None:
            started.append(starter(command))

        try:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(start).result()
            (self.process,) = started
            threading.Thread(target=self._listen_to_log, daemon=True).start()
        except BaseException:
            for self.process in started:
                self.stop()
            raise

    def __enter__(self) -> "Proxy":
        try:
            line = self.wait_for_line("listening at")
            found = _LISTENING.search(line)
            if found is None:
                raise RuntimeError(f"mitmdump did not say where it listens: {line}")
            self.port = int(found.group(1))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def memory(self) -> int:
        """Resident memory in bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process and wait for it."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._settings.cleanup()

    def wait_for_line(self, part: str, seconds: float = 30) -> str:
        """Wait until the log has a line with `part`, and return it."""

        def found() -> str | None:
            return next((line for line in self.lines if part in line), None)

        with self._changed:
            done = self._changed.wait_for(lambda: found() or self._ended(), seconds)
        line = found()
        if line is None:
            raise RuntimeError(f"mitmdump {'ended' if done else 'never'} said {part!r}:\n{self.log}")
        return line

    def _ended(self) -> bool:
        return bool(self.lines) and self.lines[-1] == _END

    def _listen_to_log(self) -> None:
        assert self.process.stdout is not None
        try:
            for line in self.process.stdout:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        except ValueError:
            pass  # closed while waiting for a line
        with self._changed:
            self.lines.append(_END)
            self._changed.notify_all()


_END = "(end of log)"


def rows_of(ledger: Path, where: str = "true", values: Sequence[object] = ()) -> list[dict[str, Any]]:
    """Return the rows of a ledger as dicts, oldest first; none where its tables are not made yet."""
    with closing(sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True, timeout=20)) as connection:
        connection.row_factory = sqlite3.Row
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'usage_records'").fetchone():
            return []
        found = connection.execute(f"SELECT * FROM usage_records WHERE {where} ORDER BY occurred_at, id", values)
        return [dict(row) for row in found]


NOT_THE_CAPTURES = {"writer", "price_source"}
"""Which versions of what wrote and priced a row is not its capture's to say."""


def without(row: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Return a row without some of its columns."""
    return {name: value for name, value in row.items() if name not in names}


def replay(capture: Path, ledger: Path, *arguments: str) -> str:
    """Read a capture with the addon (`mitmdump -nr`) and return the log."""
    with tempfile.TemporaryDirectory(prefix="mitmproxy-") as settings:
        command = [
            mitmproxys("mitmdump"),
            *("-nr", str(capture), "-s", str(ADDON), "--set", f"usage_db={ledger}"),
            *("--set", f"confdir={settings}", *arguments),
        ]
        process = starter(command)
        try:
            told, _ = process.communicate(timeout=300)
        finally:
            process.kill()
    if process.returncode:
        raise RuntimeError(f"mitmdump ended with {process.returncode}:\n{told}")
    return told


def settled_rows(ledger: Path, count: int, where: str = "true", values: Sequence[object] = ()) -> list[dict[str, Any]]:
    """Wait until the ledger has so many matching rows, none of them pending, and return them.

    A client that was told the length of a body is done with it before the row is; tests look for what comes to be.
    """
    rows: list[dict[str, Any]] = []

    def settled() -> bool:
        rows[:] = rows_of(ledger, where, values) if ledger.exists() else []
        return len(rows) >= count and not any(row["usage_state"] == "pending" for row in rows)

    wait_until(settled)
    return rows


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until a condition holds that nothing announces."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for something that did not come to be")
        time.sleep(0.01)
