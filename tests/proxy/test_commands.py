"""The commands of mitmproxy and mitmweb, asked about flows that are given. (`test_mitmweb` asks about a whole list.)"""

import logging
from pathlib import Path

import pytest
from mitmproxy import ctx
from mitmproxy.http import HTTPFlow
from mitmproxy.io import FlowReader
from mitmproxy.options import Options
from usage_ledger.flows.metered import DEFAULT_FILTER
from usage_ledger.proxy.commands import UsageCommands

from scripts.make_samples import SAMPLES
from scripts.real_proxy import replay, rows_of


@pytest.fixture
def flow() -> HTTPFlow:
    with (SAMPLES / "normal-stream.mitm").open("rb") as file:
        (flow,) = FlowReader(file).stream()
    assert isinstance(flow, HTTPFlow)
    return flow


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger that has the row of that flow, and is the one that commands ask."""
    path = tmp_path / "usage.db"
    replay(SAMPLES / "normal-stream.mitm", path)
    options = Options()
    options.add_option("usage_db", str, str(path), "")
    options.add_option("usage_filter", str, DEFAULT_FILTER, "")
    monkeypatch.setattr(ctx, "options", options, raising=False)
    return path


@pytest.mark.parametrize(
    ("field", "odd"),
    [("timestamp_start", float("nan")), ("timestamp_start", 1.8e15), ("timestamp_start", -1e300), ("path", None)],
)
def test_a_damaged_flow_is_named_and_the_others_have_their_rows(
    ledger: Path, flow: HTTPFlow, caplog: pytest.LogCaptureFixture, field: str, odd: object
) -> None:
    damaged = flow.copy()
    damaged.metadata.clear()
    setattr(damaged.request.data, field, odd)
    (row,) = rows_of(ledger)
    with caplog.at_level(logging.WARNING):
        _, line = UsageCommands().rows([damaged, flow])
        _, _, total = UsageCommands().summary([damaged, flow])
    assert line[-1] == row["id"]
    assert total[:2] == ["total", "1"]
    assert f"flow {damaged.id} is damaged (" in caplog.text
