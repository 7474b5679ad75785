"""Without a checkout: what is built is installed in an environment of its own, and meters a stream from there."""

import os
import socket
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

import pytest

from scripts.fake_console import FakeConsole
from scripts.real_proxy import rows_of, settled_rows

HERE = Path(__file__).parent.parent
CONSTRAINTS = HERE / "scripts" / "constraints.txt"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, which was built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", HERE)
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", "--constraint", CONSTRAINTS, wheel)
    return programs


def environment(home: Path) -> dict[str, str]:
    """One that leads to no checkout."""
    return {"PATH": os.defpath, "HOME": str(home), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}


def run(*command: object, cwd: Path | None = None) -> str:
    env = None if cwd is None else environment(cwd)
    done = subprocess.run(
        [str(each) for each in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_stream_is_metered_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    script = Path(run(installed / "usage-ledger", "addon", cwd=tmp_path).rstrip("\n"))
    assert script.is_relative_to(installed.parent)
    assert script.read_bytes() == (HERE / "addon" / "usage.py").read_bytes()
    ledger = tmp_path / "usage.db"
    with socket.socket() as probe, FakeConsole() as console:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        proxy = subprocess.Popen(
            [
                *(installed / "mitmdump", "--mode", f"reverse:{console.address}", "--listen-host", "127.0.0.1"),
                *("-p", str(port), "--set", f"usage_db={ledger}", "-s", script),
            ],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert proxy.stdout is not None
            assert any("listening at" in line for line in proxy.stdout)
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/messages",
                b'{"model":"claude-sonnet-4-6","stream":true}',
                {"content-type": "application/json", "x-api-key": "sk-ant-api03-R2D2-not-a-key-igAA"},
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                assert b"event: message_stop" in response.read()
            settled_rows(ledger, 1)
        finally:
            proxy.terminate()
            proxy.communicate(timeout=30)
    (row,) = rows_of(ledger)
    assert (row["usage_state"], row["input_tokens"], row["output_tokens"]) == ("complete", 12, 42)
    assert row["total_cost"] is not None
    assert "claude-sonnet-4-6" in run(installed / "usage-ledger", "rows", "--db", ledger, cwd=tmp_path)


def test_a_checkout_names_its_own() -> None:
    assert Path(run(sys.executable, "-m", "usage_ledger", "addon").rstrip("\n")) == HERE / "addon" / "usage.py"
