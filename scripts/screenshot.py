"""Make the README's picture of the overview anew (needs Chromium; on Debian: apt-get install chromium)."""

import math
import random
import shutil
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from playwright.sync_api import sync_playwright
from usage_ledger.ledger.moments import format_moment
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store

from scripts.real_pages import serving

PICTURE = Path(__file__).parent.parent / "data" / "overview.png"
DAYS = 30
MODELS = {"claude-sonnet-4-6": (0.62, 0.021), "claude-opus-4-6": (0.18, 0.084), "claude-haiku-4-5": (0.20, 0.006)}
"""Models, each with its share of the requests and what one costs (USD)."""


def traffic() -> list[Entry]:
    """Made-up requests: busy on weekdays, some of them failed or flagged."""
    chance = random.Random(1)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    found = []
    for day in range(DAYS):
        start = midnight - timedelta(days=DAYS - 1 - day)
        busy = 90 + 40 * math.sin(day / 5) if start.weekday() < 5 else 25
        for _ in range(int(busy)):
            model = chance.choices(list(MODELS), [share for share, _ in MODELS.values()])[0]
            moment = start + timedelta(seconds=chance.gauss(14, 3) % 24 * 3600)
            failed, flagged = chance.random() < 0.03, chance.random() < 0.02
            size = chance.lognormvariate(0, 0.6)
            counts = {
                "input_tokens": int(900 * size),
                "output_tokens": int(420 * size),
                "cache_creation_input_tokens": int(700 * size),
                "cache_read_input_tokens": int((5_000 + 90 * day) * size),
            }
            record = Record(
                id=f"{int(moment.timestamp() * 1_000_000):013x}-{chance.randrange(16**12):012x}",
                occurred_at=format_moment(moment),
                host="api.anthropic.com",
                path="/v1/messages",
                account_id=chance.choices(["search", "support", "nightly", "research"], [5, 3, 2, 1])[0],
                credential_kind="api_key",
                tag=chance.choice([None, "checkout", "triage", "evals"]),
                model=model,
                stream=1,
                http_status=529 if failed else 200,
                usage_state="none" if failed else "partial" if flagged else "complete",
                requires_manual_review=int(flagged and not failed),
                review_reason="client_disconnected" if flagged and not failed else None,
                total_cost="0" if failed else None if flagged else f"{MODELS[model][1] * size:.6f}",
                time_to_first_token_ms=None if failed else int(500 * chance.lognormvariate(0, 0.5)),
            )
            if not failed:
                for name, count in counts.items():
                    setattr(record, name, count)
                record.total_tokens = sum(counts.values())
            found.append(Entry(record))
    return found


def main() -> int:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("there is no Chromium; on Debian: apt-get install chromium", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "usage.db"
        with closing(Store(ledger, "normal", "abc")) as store:
            store.write(traffic(), [])
        with serving(ledger) as pages, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.goto(pages.link())
            page.screenshot(path=PICTURE)
            browser.close()
    print(f"{PICTURE} is made anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
