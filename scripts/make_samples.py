"""The sample captures: each case of the catalogue happens once, through the real mitmdump with the addon and `-w`.

A sample is one flow, `NAME.mitm`, and beside it the rows that a replay of it into a new ledger yields, `NAME.json`.
Nothing is saved unless for every case the live row and the replayed one are the same and have the verdict that the
catalogue tells. Everything runs on 127.0.0.1, with a made-up key. `./scripts/samples` makes those in `data/flows`.
"""

import json
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from mitmproxy.http import HTTPFlow
from mitmproxy.io import FlowReader, FlowWriter
from usage_ledger.flows.rows import record_id

from scripts.fake_console import FakeConsole
from scripts.real_proxy import NOT_THE_CAPTURES, ROOT, Proxy, replay, rows_of, settled_rows, wait_until, without
from scripts.sample_cases import CASES, FILES, Case, Client, Setup

type Rows = list[dict[str, Any]]

SAMPLES = ROOT / "data" / "flows"
ONLY_LIVE = {"origin", "time_to_first_token_ms", "completed_at", "duration_ms"}
"""What a live row and a replayed one tell differently."""


def main(folder: Path) -> int:
    with tempfile.TemporaryDirectory(prefix="usage-ledger-samples-") as name:
        place = Path(name)
        for file, content in FILES.items():
            (place / file).write_text(content, encoding="utf-8")
        lived: dict[str, Rows] = {}
        with FakeConsole() as console:
            console.scenarios |= {case.name: case.scenario for case in CASES}
            for setup in dict.fromkeys(case.setup for case in CASES):
                lived |= live([case for case in CASES if case.setup == setup], setup, console, place)
        captures = [place / f"{case.name}.mitm" for case in CASES]
        replayed = replayed_rows(captures)
        wrong = [line for case in CASES for line in faults(case, lived[case.name], replayed[case.name])]
        print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr)
        if wrong:
            return 1
        folder.mkdir(parents=True, exist_ok=True)
        for capture in captures:
            shutil.copyfile(capture, folder / capture.name)
            told = json.dumps(replayed[capture.stem], indent=1)
            (folder / f"{capture.stem}.json").write_text(f"{told}\n", encoding="utf-8")
    print(f"{len(CASES)} samples are in {folder}")
    return 0


# What happens live.


def live(cases: list[Case], setup: Setup, console: FakeConsole, place: Path) -> dict[str, Rows]:
    """Make the cases of one setup happen; save each one's flow as its sample in `place` and return its live rows."""
    own = Path(tempfile.mkdtemp(dir=place))
    capture, ledger = own / "all.mitm", own / "usage.db"
    if not setup.ledger_is_writable:
        own.joinpath("file").write_text("no folder")
        ledger = own / "file" / "usage.db"
    with ExitStack() as stack:
        options = [option.format(folder=place) for option in setup.options]
        upstream = console.address if setup.upstream_is_up else f"http://127.0.0.1:{unused_port()}"
        proxy = stack.enter_context(Proxy(upstream, ledger, "-w", str(capture), *options))
        for case in cases:
            happen(case, proxy, console, stack)
        proxy.stop()  # while the clients that stay are there
    rows = rows_with_iterations(ledger) if setup.ledger_is_writable else []
    lived: dict[str, Rows] = {}
    for flow in flows_of(capture):
        name = flow.request.headers["x-scenario"]
        with (place / f"{name}.mitm").open("xb") as file:
            FlowWriter(file).add(flow)
        lived[name] = [row for row in rows if row["id"] == record_id(flow)]
    if set(lived) != {case.name for case in cases} or sum(map(len, lived.values())) != len(rows):
        raise RuntimeError(f"not one flow a case, or rows of none: {sorted(lived)}, {len(rows)} rows\n{proxy.log}")
    return lived


def happen(case: Case, proxy: Proxy, console: FakeConsole, until_the_end: ExitStack) -> None:
    """Make one case happen, until its row is settled; a client that stays is left to `until_the_end`."""
    client = HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    client.connect()
    port = client.sock.getsockname()[1]
    stays = case.client is Client.STAYS
    with ExitStack() as stack:
        (until_the_end if stays else stack).enter_context(closing(client))
        ask(client, case)
        if case.client is Client.READS or case.until:
            read(client, case)
        elif case.client is not Client.ABORTS_UPLOAD:
            wait_until(lambda: console.received[case.name])
    if not stays:
        proxy.wait_for_line(f":{port}] client disconnect")
        if case.verdict is not None:
            settled_rows(proxy.ledger, 1, "session_id = ?", [case.session])


def ask(client: HTTPConnection, case: Case) -> None:
    body = case.body()
    client.putrequest("POST", "/v1/messages?beta=true")
    for name, value in {**case.headers(), "content-length": str(len(body))}.items():
        client.putheader(name, value)
    client.endheaders(body[: len(body) // 2] if case.client is Client.ABORTS_UPLOAD else body)


def read(client: HTTPConnection, case: Case) -> None:
    """Read the answer to its end, or as far as the case says; a connection that breaks is its end."""
    seen = b""
    with suppress(HTTPException, ConnectionError):
        answer = client.getresponse()
        while (case.client is Client.READS or case.until not in seen) and (data := answer.read1()):
            seen += data
    if case.until not in seen:
        raise RuntimeError(f"{case.name}: the client was to see {case.until!r}, and saw {seen!r}")


def unused_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
    return port


# What a replay tells.


def replayed_rows(captures: Iterable[Path]) -> dict[str, Rows]:
    """Replay captures into a new ledger, all at once, and return each one's rows by its name."""
    with tempfile.TemporaryDirectory(prefix="usage-ledger-samples-") as name:
        joined, ledger = Path(name) / "all.mitm", Path(name) / "usage.db"
        names: dict[str, str] = {}
        with joined.open("wb") as file:
            for capture in captures:
                file.write(capture.read_bytes())
                names |= {record_id(flow): capture.stem for flow in flows_of(capture)}
        replay(joined, ledger)
        rows: dict[str, Rows] = {name: [] for name in names.values()}
        for row in rows_with_iterations(ledger):
            rows[names[row["id"]]].append(without(row, NOT_THE_CAPTURES))
    return rows


def flows_of(capture: Path) -> list[HTTPFlow]:
    with capture.open("rb") as file:
        return [flow for flow in FlowReader(file).stream() if isinstance(flow, HTTPFlow)]


def rows_with_iterations(ledger: Path) -> Rows:
    """Return the rows of a ledger, oldest first, and in `iterations` the entries of those that have some."""
    rows = rows_of(ledger)
    with closing(sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        for row in rows:
            found = connection.execute(
                "SELECT * FROM usage_iterations WHERE record_id = ? ORDER BY position", [row["id"]]
            )
            if entries := [without(dict(entry), {"record_id"}) for entry in found]:
                row["iterations"] = entries
    return rows


def faults(case: Case, lived: Rows, replayed: Rows) -> list[str]:
    """Return what is wrong with a sample, a line each."""
    verdict = [(row["usage_state"], row["review_reason"]) for row in replayed]
    wrong = [f"{case.name}: {verdict} is not {case.verdict}"] if verdict != [*filter(None, [case.verdict])] else []
    if case.body_is_lost:
        return wrong if len(lived) == 1 else [*wrong, f"{case.name}: {len(lived)} live rows"]
    apart = NOT_THE_CAPTURES | ONLY_LIVE
    if [without(row, apart) for row in lived] != [without(row, apart) for row in replayed]:
        wrong.append(f"{case.name}: live and replayed differ:\n  {lived}\n  {replayed}")
    return wrong


if __name__ == "__main__":
    folders = sys.argv[1:] or [str(SAMPLES)]
    if len(folders) > 1 or folders[0].startswith("-"):
        print("usage: ./scripts/samples [FOLDER]", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main(Path(folders[0])))
    except KeyboardInterrupt:
        sys.exit(130)
