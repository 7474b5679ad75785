"""`usage-ledger export --format focus`: charges as FinOps tools read them, adding up to the rows to the last digit."""

import csv
import io
import json
import re
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.record import Entry, IterationRow
from usage_ledger.ledger.store import Store
from usage_ledger.prices.pricer import Pricer

from tests.cli.test_backfill import FLAGGED, record, run

MANDATORY = {
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd"),
    *("BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd"),
    *("ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity"),
    *("PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName"),
}
"""The 21 mandatory columns of FOCUS 1.2."""

COUNTS = {
    "input_tokens": 1_000,
    "output_tokens": 200,
    "cache_creation_input_tokens": 70,
    "cache_creation_5m_input_tokens": 40,
    "cache_creation_1h_input_tokens": 30,
    "cache_read_input_tokens": 5_000,
    "web_search_requests": 2,
    "total_tokens": 6_270,
}


def row(id_: str, iterations: tuple[IterationRow, ...] = (), **fields: Any) -> Entry:
    given = {"usage_state": "complete", "completed_at": "2026-11-01T08:00:02.500Z", **COUNTS, **fields}
    entry = Entry(record(id_, **given), list(iterations))
    if entry.record.total_cost is None:
        Pricer().give(entry)
    return entry


def fill(path: Path, *entries: Entry) -> Path:
    with closing(Store(path, "normal", "abc")) as store:
        store.write(list(entries), [])
    return path


def focus(path: Path, *arguments: str, says: str = "") -> list[dict[str, str]]:
    done = run(path, "--format", "focus", *arguments, command="export")
    assert (done.returncode, done.stderr) == (0, says), done
    return list(csv.DictReader(io.StringIO(done.stdout, newline="")))


def total(charges: list[dict[str, str]], column: str = "BilledCost") -> Decimal:
    return sum((Decimal(each[column]) for each in charges), Decimal(0))


def test_a_request_is_a_charge_for_each_kind_of_its_tokens(tmp_path: Path) -> None:
    found = focus(fill(tmp_path / "usage.db", row("a", tag="team", workspace_id="wrkspc_1", organization_id="org")))
    assert set(found[0]) >= MANDATORY
    assert [(each["x_TokenKind"], each["ConsumedQuantity"], each["BilledCost"]) for each in found] == [
        ("input", "1000", "0.003"),
        ("output", "200", "0.003"),
        ("cache_write_5m", "40", "0.00015"),
        ("cache_write_1h", "30", "0.00018"),
        ("cache_read", "5000", "0.0015"),
        ("web_search", "2", "0.02"),
    ]
    first = found[0]
    assert first["ChargeDescription"] == "claude-sonnet-4-6: input tokens"
    assert (first["BillingAccountId"], first["SubAccountId"]) == ("org", "wrkspc_1")
    assert (first["BillingPeriodStart"], first["BillingPeriodEnd"]) == ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")
    assert (first["ChargePeriodStart"], first["ChargePeriodEnd"]) == ("2026-11-01T08:00:00Z", "2026-11-01T08:00:03Z")
    assert (first["ChargeCategory"], first["ChargeClass"]) == ("Usage", "")
    assert json.loads(first["Tags"]) == {"tag": "team"}


def test_every_charge_has_what_the_specification_asks_for(tmp_path: Path) -> None:
    path = fill(tmp_path / "usage.db", row("a"), row("dec", occurred_at="2026-12-31T23:59:59.999Z", completed_at=None))
    for each in focus(path):
        for name in MANDATORY - {"ChargeClass"}:
            assert each[name] != ""
        for name in ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost", "PricingQuantity"):
            assert re.fullmatch(r"\d+(\.\d+)?", each[name])
        for name in ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd"):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", each[name])
        assert each["BillingPeriodStart"] <= each["ChargePeriodStart"] < each["ChargePeriodEnd"]
        assert each["BillingCurrency"] == "USD"


def test_charges_add_up_to_what_the_rows_cost(tmp_path: Path) -> None:
    advisor = IterationRow("b", 1, "advisor_message", "claude-opus-4-7", 1, input_tokens=300, output_tokens=20)
    message = IterationRow("b", 0, "message", None, 1, input_tokens=700, output_tokens=180, cache_read_input_tokens=9)
    of_iterations = {"input_tokens": 1_000, "output_tokens": 200, "cache_read_input_tokens": 9, "total_tokens": 1_209}
    nothing = dict.fromkeys(COUNTS, 0)
    entries = [
        row("a"),
        row("b", (message, advisor), **nothing | of_iterations),
        row("batch", service_tier="batch"),
        row("us", inference_geo="us"),
        row("old prices", total_cost="0.5", price_source="other prices 1"),
        row("long", model="claude-haiku-5-5", input_tokens=150_000, total_tokens=155_270),
    ]
    found = focus(fill(tmp_path / "usage.db", *entries))
    for entry in entries:
        of_row = [each for each in found if each["x_RowId"] == entry.record.id]
        assert total(of_row) == Decimal(entry.record.total_cost or "x")
    assert {each["x_Model"] for each in found if each["x_RowId"] == "b"} == {"claude-sonnet-4-6", "claude-opus-4-7"}
    (whole,) = [each for each in found if each["x_RowId"] == "old prices"]
    assert (whole["x_TokenKind"], whole["PricingQuantity"], whole["PricingUnit"]) == (
        "request",
        "0.00627",
        "1000000 Tokens",
    )


def test_what_is_on_no_bill_is_no_charge(tmp_path: Path) -> None:
    path = fill(
        tmp_path / "usage.db",
        row("sub", credential_kind="oauth"),
        Entry(record("none", usage_state="none", total_cost="0")),
        Entry(record("f", **FLAGGED)),
        row("unknown", model="claude-opus-99"),
        Entry(record("p")),
    )
    says = "1 row(s) with final usage have no cost, and are left out; see price\n"
    assert focus(path, says=says) == []


def test_a_correction_is_one(tmp_path: Path) -> None:
    path = fill(tmp_path / "usage.db", Entry(record("f", **FLAGGED)))
    run(path, "--id", "f", "--input-tokens", "1000", command="backfill")
    assert [(each["ChargeClass"], each["BilledCost"]) for each in focus(path)] == [("Correction", "0.003")]


def test_what_a_contract_makes_of_the_list_stands_beside_it(tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "*"\nmultiplier = 0.5\n')
    path = fill(tmp_path / "usage.db", row("a", total_cost="1"))
    run(path, "--since", "2026-01-01", command="price")
    found = focus(path)
    assert total(found) * 2 == total(found, "ListCost") == Decimal("0.02783")


@pytest.mark.parametrize("name", ["november.csv", "november.csv.gz"])
def test_it_can_be_written_to_a_file(tmp_path: Path, name: str) -> None:
    path = fill(tmp_path / "usage.db", row("a"))
    focus(path, "--output", str(tmp_path / name))
    assert (tmp_path / name).stat().st_size > 100


def test_its_columns_cannot_be_chosen(tmp_path: Path) -> None:
    done = run(fill(tmp_path / "usage.db"), "--format", "focus", "--columns", "id", command="export")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
