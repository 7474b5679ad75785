"""The demo of the fleet: three proxies, one PostgreSQL, and a desk that works on the books of all of them.

Everything runs on this machine: fake Console, real mitmdump, a real PostgreSQL in a temporary folder.
"""

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import anthropic

from scripts.fake_console import FakeConsole
from scripts.real_postgres import Postgres, query
from scripts.real_proxy import Proxy, rows_of, settled_rows
from scripts.run_demo import KEYS, say, stream

SOURCES = ("web-1", "web-2", "batch-1")
BY_SQL = (
    "UPDATE usage_records SET input_tokens = 12, output_tokens = 42, cache_read_input_tokens = 2000, "
    """total_tokens = 2054, metadata = metadata || '{"_manually_updated": true}'::jsonb WHERE id = '%s'"""
)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="usage-ledger-demo-") as name, Postgres() as postgres:
        folder = Path(name)
        dsn = postgres.new_database()
        ledgers = {source: folder / f"{source}.db" for source in SOURCES}
        with FakeConsole() as console, ExitStack() as stack:
            for number, (source, ledger) in enumerate(ledgers.items()):
                proxy = stack.enter_context(Proxy(console.address, ledger))
                key = list(KEYS.values())[number]
                client = anthropic.Anthropic(api_key=key, base_url=proxy.address, max_retries=0, timeout=20)
                for scenario in ("normal", "without_usage", "iterations")[: number + 1]:
                    stream(client, scenario)
                client.close()
                rows = settled_rows(ledger, number + 1)
                say(f"  {source:<10} {len(rows)} request(s)")
        say()
        for source, ledger in ledgers.items():
            say(f"$ usage-ledger push $DSN --source {source}")
            tool("push", dsn, "--source", source, "--db", str(ledger))
        desk = folder / "fleet.db"
        say()
        say("$ usage-ledger pull $DSN --db fleet.db")
        tool("pull", dsn, "--db", str(desk))
        say()
        say("$ usage-ledger rows --db fleet.db")
        tool("rows", "--db", str(desk))
        (flagged, *_) = [row["id"] for row in rows_of(desk) if row["requires_manual_review"]]
        say()
        say("A flagged row is corrected by SQL, as somebody with psql would:")
        say(f"  {BY_SQL % flagged}")
        query(dsn, BY_SQL % flagged)
        for step in (("pull", dsn), ("verify",), ("push", dsn, "--source", "desk"), ("summary", "--by", "key,model")):
            say()
            say(f"$ usage-ledger {' '.join('$DSN' if part == dsn else part for part in step)} --db fleet.db")
            tool(*step, "--db", str(desk))
        ((count, flags),) = query(dsn, "SELECT count(*), sum(requires_manual_review) FROM usage_records")
        return 0 if count == sum(len(rows_of(ledger)) for ledger in ledgers.values()) and flags == 1 else 1


def tool(*arguments: str) -> None:
    """Run `usage-ledger`, its lines moved in."""
    done = subprocess.run(
        [sys.executable, "-m", "usage_ledger", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
    )
    for line in done.stdout.decode().splitlines():
        say(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
