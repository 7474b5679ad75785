"""Options that cannot work end mitmdump before it takes traffic, with a line that names them."""

import os
import subprocess
from pathlib import Path

import pytest

from scripts.real_proxy import ADDON, mitmproxys


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("usage_filter=~c 200", "asks about the response"),
        ("usage_filter=~m POST & !(~hs x | ~d y)", "asks about the response"),
        ("usage_filter=~~~", "usage_filter"),
        ("usage_tag_header=no header", "not the name of a header"),
        ("usage_capture_limit=lots", "is not a size"),
        ("usage_capture_limit=0", "not a size above 0"),
        ("usage_durability=maybe", "usage_durability"),
        ("usage_tag_header=X-Api-Key", "usage_tag_header"),
        ("usage_filter=~websocket", "usage_filter"),
        ("usage_on_ledger_error=panic", "usage_on_ledger_error"),
        ("usage_capture=sometimes", "usage_capture"),
        ("usage_db=/", "is a folder"),
        ("usage_alert_rate=2", "usage_alert_rate: '2' is no share from 0 to 1"),
        ("usage_alert_rate=nan", "is no share from 0 to 1"),
        ("usage_alert_rate=many", "is no share from 0 to 1"),
        ("usage_alert_window=soon", "usage_alert_window: 'soon' is no span of time"),
        ("usage_alert_window=0m", "is no span of time"),
        ("usage_alert_min=0", "usage_alert_min: '0' is not a number from 1 on"),
        ("usage_alert_min=five", "usage_alert_min: 'five' is not a number from 1 on"),
        ("usage_alert_min=5.0", "is not a number from 1 on"),
        ("usage_alert_min", "usage_alert_min is given without a value"),
        ("usage_account=a --set usage_account=b", "usage_account is given several times: a, b"),
        ("usage_alert_url=TOKEN://x", "usage_alert_url: it is no address that Apprise knows"),
    ],
)
def test_a_bad_option_is_named(tmp_path: Path, option: str, says: str) -> None:
    done = subprocess.run(
        [
            mitmproxys("mitmdump"),
            *("-s", str(ADDON), "--set", f"confdir={tmp_path}", "--listen-host", "127.0.0.1", "-p", "0"),
            *("--set", option.partition(" --set ")[0]),
            *(word for more in option.split(" --set ")[1:] for word in ("--set", more)),
        ],
        env={**os.environ, "USAGE_LEDGER_DB": str(tmp_path / "usage.db")},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode != 0
    assert says in done.stdout + done.stderr
    assert not (tmp_path / "usage.db").exists()


def test_alerts_to_an_address_need_their_extra(tmp_path: Path) -> None:
    (tmp_path / "apprise.py").write_text("raise ImportError('not installed')")
    done = subprocess.run(
        [
            mitmproxys("mitmdump"),
            *("-s", str(ADDON), "--set", f"confdir={tmp_path}", "--listen-host", "127.0.0.1", "-p", "0"),
            *("--set", "usage_alert_rate=0.1", "--set", "usage_alert_url=json://127.0.0.1/TOKEN"),
        ],
        env={**os.environ, "USAGE_LEDGER_DB": str(tmp_path / "usage.db"), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode != 0
    assert "usage_alert_url: it needs Apprise: pip install 'claude-usage-ledger[alerts]'" in done.stdout + done.stderr
    assert "TOKEN" not in done.stdout + done.stderr
