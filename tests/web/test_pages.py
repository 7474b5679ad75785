"""The pages: an operator, an auditor and a debugger look at a ledger in a real browser while proxies write to it."""

import csv
import io
import json
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Page, expect
from usage_ledger.ledger.record import IterationRow

from scripts.real_pages import Served, serving
from tests.browsing import a_browser, faint_texts, nameless_fields, needs_browser, open_page
from tests.web.looking import FLAGGED, HOSTILE, LINK, NOW, fill, record, tool

ROWS = 12
"""Rows of the ledger that is only looked at."""


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One ledger for all tests that only look; names and values as hostile as traffic can make them."""
    with_iterations = record(7, model="claude-opus-4-6", input_tokens=300, output_tokens=30, total_tokens=330,
                             cache_read_input_tokens=0, total_cost="3")  # fmt: skip
    return fill(
        tmp_path_factory.mktemp("pages") / "usage.db",
        *(record(number, days=number % 3, account_id="acme" if number % 2 else "globex") for number in range(1, 7)),
        with_iterations,
        record(20, days=1, tag="nightly", **FLAGGED),
        record(21, days=1, http_status=529, usage_state="none", total_cost="0", total_tokens=0),
        record(22, days=40, account_id="of-long-ago", total_cost="10"),
        record(23, model=HOSTILE, account_id=LINK, tag=HOSTILE, total_cost=None),
        record(24, model=HOSTILE, account_id=LINK, tag=HOSTILE),
        iterations=(
            IterationRow(with_iterations.id, 0, "message", "claude-opus-4-6", 1, 100, 10, total_cost="1"),
            IterationRow(with_iterations.id, 1, "advisor", "claude-haiku-4-5", 1, 200, 20, total_cost="2"),
        ),
    )


@pytest.fixture(scope="module")
def pages(ledger: Path) -> Iterator[Served]:
    with serving(ledger) as pages:
        yield pages


type Look = Callable[..., AbstractContextManager[Page]]
"""Open a page (`open_page`)."""


@pytest.fixture(scope="module")
def look() -> Iterator[Look]:
    with a_browser() as browser:
        yield partial(open_page, browser=browser)


PAGES = [
    *("/", "/?since=2026-01-01&until=2026-02-01", "/review", "/reconciliation", "/ledger", "/ledger/costly"),
    *("/ledger/usage_records?_facet=model&tag__exact=nightly", f"/ledger/usage_records/{record(7).id}"),
]


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_page_renders_and_can_be_read(look: Look, pages: Served, scheme: Literal["light", "dark"]) -> None:
    """In light and in dark, and by ear; and asks no other host for anything."""
    with look(pages.link(), color_scheme=scheme) as page:
        for path in PAGES:
            page.goto(pages.address + path)
            assert page.locator("h1").first.is_visible()
            assert page.title() != "owned"
            assert page.evaluate("document.documentElement.lang") == "en"
            assert nameless_fields(page) == []
            assert faint_texts(page) == []
            background = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
            assert (sum(background) < 200) == (scheme == "dark")


@needs_browser
@pytest.mark.parametrize("path", ["/", "/review"])
def test_a_phone_has_room_for_it(look: Look, pages: Served, path: str) -> None:
    with look(pages.link(path), width=390) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


@needs_browser
def test_every_chart_has_marks_and_its_numbers_beside_them(look: Look, pages: Served) -> None:
    with look(pages.link()) as page:
        names = page.locator("figure.usage-chart").evaluate_all("all => all.map(each => each.id)")
        assert len(names) == 9
        for name in names:
            assert page.locator(f"#{name} svg .series").locator("rect, circle, path").count() > 0, name
            assert page.locator(f"#{name} table tbody tr").count() > 0, name
        # The tokens of an advisor stand under its own model, and cost as much as they did.
        cells = page.locator("#chart-cost table thead th").all_text_contents()
        assert "claude-haiku-4-5" in cells
        last = page.locator("#chart-cost table tbody tr").last.locator("td").all_text_contents()
        assert dict(zip(cells, last, strict=True))["claude-haiku-4-5"] == "$2.00"


@needs_browser
def test_the_numbers_an_operator_needs_are_on_top(look: Look, pages: Served) -> None:
    with look(pages.link()) as page:
        assert page.locator("#flagged-now").inner_text() == "1"
        assert page.locator("#unpriced").inner_text() == "1"
        assert page.locator("#cost-today").inner_text().startswith("$")
        page.locator("#flagged-now a").click()
        expect(page.locator("tbody tr")).to_have_count(1)


@needs_browser
def test_the_days_apply_to_all_of_it(look: Look, pages: Served) -> None:
    with look(pages.link()) as page:
        before = int(page.locator("#requests").inner_text())
        page.locator("input[name=since]").fill(f"{NOW - timedelta(days=50):%Y-%m-%d}")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#requests")).to_have_text(str(before + 1))
        assert "of-long-ago" in page.locator("#chart-accounts table").text_content()  # type: ignore[operator]
        href = page.locator("#chart-accounts a", has_text="CSV").get_attribute("href")
        assert "of-long-ago" in pages.get(f"{href}")[1]


@pytest.mark.parametrize(
    "query", ["since=yesterday", "since=2026-13-01", "since=2026-05-02&until=2026-05-01", "since=9999-12-31"]
)
def test_days_that_cannot_be_are_told(pages: Served, query: str) -> None:
    """A person is shown others, with a word; a program is not."""
    status, text = pages.get(f"/?{query}")
    assert status == 200
    assert "the days cannot be read" in text
    for form in ("csv", "json"):
        status, text = pages.get(f"/overview/cost.{form}?{query}")
        assert (status, "the days cannot be read" in text) == (400, True)


def test_days_without_a_first_one_are_those_before_the_last(pages: Served) -> None:
    rows = json.loads(pages.get("/overview/cost.json?until=2026-01-31")[1])
    assert (rows[0]["time (UTC)"], rows[-1]["time (UTC)"], len(rows)) == ("2026-01-02", "2026-01-31", 30)


def test_figures_are_there_as_csv_and_json(pages: Served) -> None:
    for name in ("cost", "tokens", "kinds", "cache", "requests", "flagged", "waits", "accounts", "tags"):
        status, text = pages.get(f"/overview/{name}.csv")
        lines = list(csv.reader(io.StringIO(text)))
        assert (status, len({len(line) for line in lines})) == (200, 1)
        rows = json.loads(pages.get(f"/overview/{name}.json")[1])
        assert len(rows) == len(lines) - 1
        assert [str(value) for value in rows[-1]] == lines[0]
    assert pages.get("/overview/nothing.csv")[0] == 404


@needs_browser
def test_a_reload_shows_what_was_written_meanwhile(look: Look, tmp_path: Path) -> None:
    ledger = fill(tmp_path / "usage.db", record(1))
    with serving(ledger) as pages, look(pages.link()) as page:
        assert page.locator("#requests").inner_text() == "1"
        fill(ledger, record(2), record(3, **FLAGGED))
        page.reload()
        assert page.locator("#requests").inner_text() == "3"
        assert page.locator("#flagged-now").inner_text() == "1"
        page.goto(f"{pages.address}/ledger/usage_records")
        assert page.locator("table.rows-and-columns tbody tr").count() == 3


@needs_browser
def test_requests_are_filtered_by_facets(look: Look, pages: Served) -> None:
    with look(pages.link()) as page:
        page.get_by_role("link", name="Requests", exact=True).click()
        for facet in ("account_id", "api_key_hint", "model", "tag", "usage_state", "review_reason"):
            expect(page.locator(f".facet-info[data-column={facet}]")).to_have_count(1)
        rows = page.locator("table.rows-and-columns tbody tr")
        expect(rows).to_have_count(ROWS)
        page.locator(".facet-info[data-column=usage_state] a", has_text="partial").first.click()
        expect(rows).to_have_count(1)


def test_costs_are_compared_as_the_amounts_that_they_are(pages: Served) -> None:
    """They are exact text in the ledger, and as text 9 is more than 10."""
    status, headers, _ = pages.ask("/ledger/usage_records.json?total_cost__gt=0.5&total_cost__lte=10&_shape=array")
    assert status == 302
    costs = [row["total_cost"] for row in json.loads(pages.get(headers["location"])[1])]
    assert sorted(set(costs)) == ["1.25", "10", "3"]
    for amount in ("many", "nan", "1e999"):
        status, text = pages.get(f"/ledger/usage_records?total_cost__gt={amount}")
        assert (status, "is no amount" in text) == (400, True)
    costly = [row["total_cost"] for row in json.loads(pages.get("/ledger/costly.json?_shape=array")[1])]
    assert costly[:3] == ["10", "3", "1.25"]
    table = pages.get("/ledger/usage_records")[1]
    assert "/ledger/costly" in table
    assert "_sort=model" in table
    assert "_sort=total_cost" not in table


@needs_browser
def test_what_comes_from_traffic_is_text_and_nothing_else(look: Look, pages: Served) -> None:
    with look(pages.link("/ledger/usage_records?_sort=occurred_at&_facet=model&_facet=tag")) as page:
        assert page.title() != "owned"
        assert page.locator("td.col-model", has_text="onerror").count() == 2
        assert page.locator("td.col-account_id a").count() == 0
        assert page.locator("img").count() == 0
        page.goto(f"{pages.address}/ledger/usage_records/{record(23).id}")
        assert page.locator("td", has_text="onerror").count() >= 2
        page.goto(pages.address)
        assert page.locator("img").count() == 0
        assert HOSTILE[:20] in page.locator("#chart-tags table").text_content()  # type: ignore[operator]


@needs_browser
def test_a_row_opens_to_its_columns_its_iterations_and_its_trail(look: Look, tmp_path: Path, pages: Served) -> None:
    with look(pages.link(f"/ledger/usage_records/{record(7).id}")) as page:
        assert page.locator("table.usage-row th").count() > 40
        assert page.locator("#iterations + div tbody tr").count() == 2
        assert "nothing has changed it" in page.locator("#trail + p").inner_text()
    ledger = fill(tmp_path / "usage.db", record(1, **FLAGGED))
    tool("review", "accept", record(1).id, "--note", "<b>never billed</b>", "--db", ledger)
    with serving(ledger) as other, look(other.link(f"/ledger/usage_records/{record(1).id}")) as page:
        assert "<b>never billed</b>" in page.locator("#trail + div tbody tr").inner_text()


@needs_browser
def test_the_line_in_the_review_queue_fills_the_row_in(look: Look, tmp_path: Path) -> None:
    ledger = fill(tmp_path / "a folder's" / "usage.db", record(1, **FLAGGED), record(2, **FLAGGED))
    with serving(ledger) as pages, look(pages.link("/review")) as page:
        line = page.locator("code.usage-line").first.inner_text()
        words = shlex.split(line.replace(" N ", " 7 ", 2).replace("...", "from the Console"))
        assert words[0] == "usage-ledger"
        tool(*words[1:])
        page.reload()
        assert page.locator("tbody tr").count() == 1


@needs_browser
def test_a_long_queue_has_pages_and_its_links_have_all_of_it(look: Look, tmp_path: Path) -> None:
    ledger = fill(tmp_path / "usage.db", *(record(number, **FLAGGED) for number in range(120)), record(
        200, **FLAGGED | {"review_reason": None}))  # fmt: skip
    seen: list[str] = []
    with serving(ledger) as pages, look(pages.link("/review?reason=client_disconnected")) as page:
        hrefs = page.locator(".usage-links a").evaluate_all("all => all.map(each => each.getAttribute('href'))")
        for _ in range(3):
            seen += page.locator("tbody tr td:first-child a").evaluate_all("all => all.map(each => each.href)")
            if older := page.get_by_role("link", name="older ones").all():
                href = older[0].get_attribute("href")
                with closing(sqlite3.connect(ledger)) as connection, connection:  # the row it begins behind is gone
                    connection.execute("DELETE FROM usage_records WHERE id = ?", (record(len(seen) - 1).id,))
                page.goto(f"{pages.address}{href}")
        assert (len(seen), len(set(seen))) == (120, 120)
        as_csv, as_json = (pages.get(str(href))[1] for href in hrefs)
        assert len(list(csv.DictReader(io.StringIO(as_csv)))) == len(json.loads(as_json)) == 118
        assert pages.get("/review?reason=?")[1].count("usage-line") == 1


BILL = (
    "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
    "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
    "usage_output_tokens,web_search_count,inference_geo,speed\n"
    "2026-11-01,claude-sonnet-4-6,one,Default,message,≤ 200k,1400,0,0,3000,500,0,,\n"
    "2026-11-02,claude-sonnet-4-6,one,Default,message,≤ 200k,1000,0,0,3000,500,0,,\n"
)


COSTS = (
    "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd,cost_type,"
    "inference_geo,speed,api_key_id,api_key_status\n"
    "2026-11-02,claude-sonnet-4-6,Default,one,message,≤ 200k,input_no_cache,9.99,9.99,token,,,,active\n"
)


@needs_browser
def test_the_latest_reconciliation_is_shown(look: Look, tmp_path: Path, pages: Served) -> None:
    with look(pages.link("/reconciliation")) as page:
        assert "not compared with the bill yet" in page.inner_text("section.content")
    assert pages.get("/reconciliation.csv")[0] == 404
    ledger = fill(
        tmp_path / "usage.db",
        record(1, occurred_at="2026-11-01T08:00:00.000Z", **FLAGGED),
        record(2, occurred_at="2026-11-02T08:00:00.000Z"),
    )
    (tmp_path / "bill.csv").write_text(BILL, encoding="utf-8")
    (tmp_path / "costs.csv").write_text(COSTS, encoding="utf-8")
    tool("import", tmp_path / "bill.csv", tmp_path / "costs.csv", "--db", ledger)
    tool("reconcile", "--since", "2026-11-01", "--until", "2026-11-03", "--db", ledger, code=1)
    with serving(ledger) as other, look(other.link("/reconciliation")) as page:
        assert "2 left unexplained" in page.inner_text("section.content")
        told, meanings = page.locator("#tokens ~ div"), page.locator("#verdicts li").all_inner_texts()
        first, second = (line.split("\t") for line in told.locator("tbody tr").all_inner_texts())
        # What differs, with what is flagged in it; and what matches, in one line.
        assert first == [*("2026-11-01", "claude-sonnet-4-6", "1", "1", "input"), "1,000", "1,400", "+400",
                         "ours short, flagged"]  # fmt: skip
        assert second == [*("2026-11-02", "claude-sonnet-4-6", "1", "0", "all"), "4,500", "4,500", "0", "matches"]
        assert any("rows without usage can explain it" in meaning for meaning in meanings)
        assert any("the tokens are the same, so the prices are not" in meaning for meaning in meanings)
        prices = page.locator("#prices + div tbody tr").all_inner_texts()
        assert [line.split("\t") for line in prices] == [["2026-11-02", "claude-sonnet-4-6", "1.25", "9.99", "+8.74"]]
        assert json.loads(other.get("/reconciliation.json")[1])["left"] == 2
        rows = list(csv.DictReader(io.StringIO(other.get("/reconciliation.csv")[1])))
        assert [row["kind"] for row in rows if row["day"] == "2026-11-01"] == [
            *("input_tokens", "output_tokens", "cache_read_input_tokens")
        ]


# Names and amounts that are out of the way.


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Models that are called as we call others, subscriptions, an archive; served where the day is another one."""
    folder = tmp_path_factory.mktemp("odd")
    names = ["others", "time (UTC)", "x" * 4000, *(f"m{number}" for number in range(7))]
    ledger = fill(
        folder / "usage.db",
        *(record(place, model=name, tag="(none)", total_cost=str(20 - place)) for place, name in enumerate(names)),
        record(20, credential_kind="oauth", total_cost="40", tag=None),
        record(21, days=60),
    )
    tool("archive", "--before", f"{NOW - timedelta(days=25):%Y-%m-%d}", folder / "old.db", "--db", ledger)
    zone = "Pacific/Kiritimati" if NOW.hour >= 10 else "Pacific/Pago_Pago"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", zone)
        with serving(ledger) as pages:
            yield pages


def test_totals_are_those_of_the_rows_whatever_models_are_called(odd: Served) -> None:
    _, text = odd.get()
    assert '<dd id="cost">$155.00</dd>' in text
    assert '<dd id="requests">11</dd>' in text
    last = json.loads(odd.get("/overview/cost.json")[1])[-1]
    assert sum(value for name, value in last.items() if name != "time (UTC)*") == 155
    assert json.loads(odd.get("/overview/tags.json")[1]) == [
        {"tag": "(none)", "cost": 155.0},
        {"tag": "(none)*", "cost": 0.0},
    ]


def test_what_subscriptions_would_have_cost_stands_apart(odd: Served, pages: Served) -> None:
    assert '<dd id="listed">$40.00</dd>' in odd.get()[1]
    assert 'id="listed"' not in pages.get()[1]


def test_archived_rows_are_spoken_of_where_the_days_reach_them(odd: Served, pages: Served) -> None:
    assert 'id="archived"' in odd.get()[1]
    assert 'id="archived"' not in odd.get(f"/?since={NOW:%Y-%m-%d}")[1]
    assert 'id="archived"' not in pages.get()[1]


def test_today_is_that_of_utc(odd: Served) -> None:
    assert f'href="/?since={NOW:%Y-%m-%d}">today<' in odd.get()[1]


@needs_browser
@pytest.mark.parametrize("path", ["/", "/ledger/usage_records", "/ledger/usage_records?_facet=model"])
def test_a_long_name_takes_no_more_room_than_there_is(look: Look, odd: Served, path: str) -> None:
    with look(odd.link(path), width=1000) as page:
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= 1000
        assert page.locator("[title^=xxxx]").first.get_attribute("title") == "x" * 4000


@needs_browser
@pytest.mark.parametrize("path", ["/", f"/ledger/usage_records/{record(7).id}"])
def test_on_a_phone_each_number_stands_under_its_name(look: Look, pages: Served, path: str) -> None:
    """Our tables scroll; Datasette's become a list there, with names of its own before the cells."""
    with look(pages.link(path), width=390) as page:
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        table = page.locator(".usage-table").first
        assert table.locator("thead th").first.is_visible()
        assert table.locator("thead th").nth(1).bounding_box()["x"] == pytest.approx(  # type: ignore[index]
            table.locator("tbody tr").first.locator("td").nth(1).bounding_box()["x"],
            abs=1,  # type: ignore[index]
        )
        assert page.evaluate("getComputedStyle(document.querySelector('.usage-table td'), ':before').content") == "none"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
