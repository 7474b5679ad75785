"""How fast it is, beside what it is held against, in one run. Prints one page; asserts nothing.

Each line has the median of all rounds with the least and the most, for us and for the reference, and the ratio of the
two, round by round: sides are measured in turn (A B C, A B C, ...), so that a noisy machine is noisy for all of them.
"""

import json
import os
import platform
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import click
from mitmproxy import http
from usage_ledger.flows.files import as_saved, saved_flows
from usage_ledger.ledger.columns import COLUMNS
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store
from usage_ledger.messages import Ending, MessageReader

from scripts import bench_proxy, many_rows
from scripts.bench_proxy import Line
from scripts.fake_console import NORMAL, START_USAGE, STOP, delta, start, text
from scripts.make_samples import SAMPLES
from scripts.real_pages import Served, serving
from scripts.real_proxy import ADDON, mitmproxys
from scripts.rounds import ROUNDS, measure, ratio


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return a side that measures the seconds of some work."""

    def side() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return side


def running(*command: object, check: bool = True) -> Callable[[], float]:
    """Return a side that measures the seconds of a command, from its start to its end."""

    def work() -> None:
        quiet = subprocess.DEVNULL
        subprocess.run([*map(str, command)], check=check, stdout=quiet, stderr=quiet)

    return timed(work)


def usage_ledger(*arguments: object) -> list[object]:
    return [Path(sys.executable).with_name("usage-ledger"), *arguments]


# The parts.


def proxy(folder: Path, rows: int) -> Iterator[Line]:
    """Requests, delays and memory of a proxy, beside one that only lets streams pass (4 minutes)."""
    yield from bench_proxy.run(folder)


def parser(folder: Path, rows: int) -> Iterator[Line]:
    """Events to usage, beside decoding every event."""
    events = [start(START_USAGE), *text(" ".join(["word"] * 2_000)), delta({"output_tokens": 42}), STOP]
    body = b"".join(events)
    chunks = [body[place : place + 1_400] for place in range(0, len(body), 1_400)]

    def ours(pieces: list[bytes]) -> Callable[[], float]:
        def read() -> None:
            for _ in range(20):
                reader = MessageReader()
                for piece in pieces:
                    reader.feed(piece)
                reader.finish(clean=True)
                assert reader.verdict(Ending.FINISHED, 200).counts.output_tokens == 42

        return timed(read)

    def reference() -> None:
        for _ in range(20):
            for block in body.split(b"\n\n"):
                for line in block.split(b"\n"):
                    if line.startswith(b"data: "):
                        json.loads(line[6:])

    sides = {
        "reference": timed(reference),
        "event by event": ours(events),
        "in 1,400 bytes": ours(chunks),
        "whole": ours([body]),
    }
    found = measure(sides)
    for name, target in (("event by event", ">= 7"), ("in 1,400 bytes", ">= 7"), ("whole", ">= 10")):
        each = 20 * len(events) / 1e6
        yield (
            f"events to usage, {name}, µs an event",
            f"{found[name].median / each:.2f}",
            f"{found['reference'].median / each:.2f}",
            ratio(found["reference"], found[name]).told("{:.1f}") + " times",
            f"{target} times",
        )


def ledger(folder: Path, rows: int) -> Iterator[Line]:
    """Rows written before and after their requests, 16 a commit, and the bytes that they take."""
    count, at_once = 1_600, 16
    run = 0

    def record(number: int, **more: object) -> Record:
        given: dict[str, object] = {
            "id": f"{run:03}{number:010x}-{number:012x}",
            "occurred_at": f"2026-11-01T00:00:{number % 60:02}.000Z",
            "account_id": "key:0123456789ab",
            "host": "api.anthropic.com",
            "path": "/v1/messages",
            "metadata": '{"user_agent":"claude-cli/2.1.0 (external, cli)"}',
        }
        return Record(**(given | more))  # type: ignore[arg-type]

    final = {
        "usage_state": "complete",
        "input_tokens": 12,
        "output_tokens": 42,
        "total_tokens": 54,
        "usage_raw": many_rows.RAW,
    }

    def ours() -> None:
        nonlocal run
        run += 1
        with closing(Store(folder / "ours.db", "full", "abc")) as store:
            for place in range(0, count, at_once):
                for more in ({}, final):
                    store.write([Entry(record(n, **more)) for n in range(place, place + at_once)], [])

    names = ", ".join(COLUMNS)
    insert = f"INSERT INTO usage_records ({names}) VALUES ({', '.join('?' * len(COLUMNS))})"
    update = f"UPDATE usage_records SET {', '.join(f'{name} = ?' for name in final)} WHERE id = ?"
    Store(folder / "raw.db", "full", "abc").close()

    def raw() -> None:
        nonlocal run
        run += 1
        with closing(sqlite3.connect(folder / "raw.db")) as connection:
            connection.execute("PRAGMA synchronous = full")
            for place in range(0, count, at_once):
                made = [record(n) for n in range(place, place + at_once)]
                with connection:
                    for each in made:
                        connection.execute(insert, [getattr(each, name) for name in COLUMNS])
                with connection:
                    for each in made:
                        connection.execute(update, [*final.values(), each.id])

    found = measure({"raw": timed(raw), "ours": timed(ours)})
    rates = {name: type(told)(tuple(count / seconds for seconds in told.numbers)) for name, told in found.items()}
    yield (
        "ledger, pending and final, 16 a commit, fsync each, requests/s",
        rates["ours"].told("{:,.0f}"),
        rates["raw"].told("{:,.0f}"),
        ratio(rates["ours"], rates["raw"]).told(),
        ">= 15,000 or 0.85",
    )
    for name, with_limits, target in (
        ("with the rate limits", True, "<= 2.0 KB"),
        ("without them", False, "<= 1.1 KB"),
    ):
        path = many_rows.make(folder / f"{with_limits}.db", 20_000, with_limits)
        yield f"bytes a row, {name}", f"{path.stat().st_size / 20_000:,.0f}", "", "", target


def export(folder: Path, rows: int) -> Iterator[Line]:
    """All rows as CSV."""
    path = big(folder, rows)
    query = f"SELECT {', '.join(COLUMNS)} FROM usage_records ORDER BY occurred_at, id"
    code = (
        "import csv, sqlite3, sys; out = csv.writer(sys.stdout); "
        f"[out.writerow(row) for row in sqlite3.connect({str(path)!r}).execute({query!r})]"
    )
    sides = {
        "ours": running(*usage_ledger("export", "--db", path)),
        "csv": running(sys.executable, "-c", code),
        "sqlite-utils": running(mitmproxys("sqlite-utils"), "rows", path, "usage_records", "--csv"),
    }
    found = measure(sides, rounds=3)
    for name in ("csv", "sqlite-utils"):
        what = f"export of {rows:,} rows to CSV, s, beside {name}"
        yield what, found["ours"].told(), found[name].told(), ratio(found["ours"], found[name]).told(), "<= 0.4"
    code = f"import resource, subprocess; subprocess.run({[*map(str, usage_ledger('export', '--db', path))]!r}, " + (
        "stdout=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    yield "memory of that, MB", f"{int(told) / 1024:.0f}", "", "", "<= 40 MB"


def begin(folder: Path, rows: int) -> Iterator[Line]:
    """Start-up."""
    sides = {
        "ours": running(*usage_ledger("--version")),
        "sqlite-utils": running(mitmproxys("sqlite-utils"), "--version"),
    }
    found = measure(sides)
    what = "usage-ledger --version, s, beside sqlite-utils --version"
    yield (
        what,
        found["ours"].told(),
        found["sqlite-utils"].told(),
        ratio(found["ours"], found["sqlite-utils"]).told(),
        "<= 0.45",
    )


def replay(folder: Path, rows: int) -> Iterator[Line]:
    """A capture replayed, with and without the addon (3 minutes)."""
    flows = 10_000
    (flow,) = saved_flows(SAMPLES / "normal-stream.mitm")
    assert isinstance(flow, http.HTTPFlow)
    assert flow.response is not None
    flow.response.raw_content = b"".join([*NORMAL[:3], *text(" ".join(["word"] * 195))[1:-1], *NORMAL[-3:]])
    capture = folder / "capture.mitm"
    with capture.open("wb") as file:
        for number in range(flows):
            flow.id = str(uuid.UUID(int=number))
            flow.request.timestamp_start += 0.001
            flow.response.headers["request-id"] = f"req_{number:024x}"
            file.write(as_saved(flow))
    bare = [mitmproxys("mitmdump"), "-q", "-nr", capture]

    def ours() -> float:
        path = folder / f"{uuid.uuid4()}.db"
        seconds = running(*bare, "-s", ADDON, "--set", f"usage_db={path}")()
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT count(*) FROM usage_records").fetchone() == (flows,)
        return seconds

    found = measure({"bare": running(*bare), "ours": ours}, rounds=3)
    what = f"replay of {flows:,} flows of 200 events, s"
    yield what, found["ours"].told(), found["bare"].told(), ratio(found["ours"], found["bare"]).told(), "<= 1.25"


def bill(folder: Path, rows: int) -> Iterator[Line]:
    """Sums by model and day, beside the bare SQL; a month compared with its bill."""
    path = big(folder, rows)
    counts = ", ".join(f"sum({name})" for name in ("input_tokens", "output_tokens", "cache_creation_input_tokens"))
    code = (
        "import sqlite3; "
        f"print(sqlite3.connect({str(path)!r}).execute('SELECT substr(occurred_at, 1, 10), model, count(*), {counts}, "
        "sum(cache_read_input_tokens), sum(total_cost), sum(requires_manual_review) FROM usage_records "
        "GROUP BY 1, 2').fetchall())"
    )
    sides = {
        "ours": running(*usage_ledger("summary", "--by", "day,model", "--format", "json", "--db", path)),
        "sql": running(sys.executable, "-c", code),
    }
    found = measure(sides, rounds=3)
    what = f"summary of {rows:,} rows by model and day, s"
    yield what, found["ours"].told(), found["sql"].told(), ratio(found["ours"], found["sql"]).told(), "<= 1.3"


def push(folder: Path, rows: int) -> Iterator[Line]:
    """Rows pushed into a real PostgreSQL, beside psql."""
    command = [sys.executable, "-m", "scripts.simulate", "--pushers", "1", "--rows", str(min(rows, 200_000))]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    ours, theirs = (float(_RATE.search(line)[1].replace(",", "")) for line in told[1:3])  # type: ignore[index]
    what = f"push of {min(rows, 200_000):,} rows, rows/s, beside psql \\copy"
    yield what, f"{ours:,.0f}", f"{theirs:,.0f}", f"{theirs / ours:.2f} times as long", "<= 2"


_RATE = re.compile(r"([0-9,]+) rows/s")


def page(folder: Path, rows: int) -> Iterator[Line]:
    """The overview of all rows, also where each tenth has iterations."""
    advised = folder / "advised.db"
    for path, what in ((big(folder, rows), ""), (advised, ", each tenth with iterations")):
        if not path.exists():
            many_rows.advise(many_rows.make(path, rows))
        with serving(path) as pages:

            def get(pages: Served = pages) -> None:
                assert "chart-cost" in pages.get("/?since=2026-11-01&until=2026-11-30")[1]

            found = measure({"ours": timed(get)}, rounds=5)
        yield f"overview of {rows:,} rows{what}, s", found["ours"].told(), "", "", "<= 2"


def growth(folder: Path, rows: int) -> Iterator[Line]:
    """How the cost grows: with events, with streams at once, and with rows (the last ones take a minute)."""
    for count in (10, 100, 1_000, 10_000):
        body = b"".join([start(START_USAGE), *text(" ".join(["word"] * count)), delta({"output_tokens": 42}), STOP])

        def read(body: bytes = body, count: int = count) -> None:
            for _ in range(max(1, 10_000 // count)):
                reader = MessageReader()
                for place in range(0, len(body), 1_400):
                    reader.feed(body[place : place + 1_400])
                reader.finish(clean=True)

        seconds = measure({"ours": timed(read)}, rounds=5)["ours"].median
        each = seconds / (max(1, 10_000 // count) * count) * 1e6
        yield f"a stream of {count:,} events, in 1,400 bytes, µs an event", f"{each:.2f}", "", "", ""
    yield from bench_proxy.growing(folder)
    for count in (size for size in (1_000, 10_000, 100_000, 1_000_000, 10_000_000) if size <= rows):
        path = many_rows.make(folder / f"{count}.db", count)
        told = [f"{path.stat().st_size / 1e6:,.1f} MB"]
        for name, *arguments in (("summary",), ("export",), ("check", "--max-flagged", "1")):
            seconds = running(*usage_ledger(name, "--db", path, *arguments), check=False)()
            told.append(f"{name} {seconds:.2f} s")
        yield f"{count:,} rows", ", ".join(told), "", "", ""


def big(folder: Path, rows: int) -> Path:
    """A ledger of very many rows, made once."""
    path = folder / "big.db"
    if not path.exists():
        click.echo(f"making a ledger of {rows:,} rows", err=True)
        many_rows.make(path, rows)
    return path


PARTS: dict[str, Callable[[Path, int], Iterator[Line]]] = {
    "proxy": proxy,
    "parser": parser,
    "ledger": ledger,
    "export": export,
    "replay": replay,
    "bill": bill,
    "push": push,
    "page": page,
    "start": begin,
    "growth": growth,
}


def heading() -> str:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    cores = len(os.sched_getaffinity(0))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {cores} cores of {cpu}, Python {platform.python_version()}, "
        f"mitmproxy {version('mitmproxy')}, SQLite {sqlite3.sqlite_version}"
    )


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option(
    "--rows", default=1_000_000, show_default=True, type=click.IntRange(1_000), help="Rows of the big ledger."
)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to keep it. Default: one that goes afterwards.")
def bench(parts: tuple[str, ...], rows: int, folder: Path | None) -> None:
    """Measure all of it, or some PARTS, and print a table in Markdown. All of it takes about a quarter of an hour."""
    with tempfile.TemporaryDirectory(prefix="usage-ledger-bench-") as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        click.echo(f"{heading()}; medians (least to most) of up to {ROUNDS} rounds\n")
        click.echo("| what | ours | reference | ratio | target |\n|---|---|---|---|---|")
        for name in parts or PARTS:
            for line in PARTS[name](place, rows):
                click.echo(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    bench()
