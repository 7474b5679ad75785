"""Without a checkout: what is built is installed in each way that README names, and meters a stream from there.

One thing is not word for word: the wheel's file stands where the registry's name does.
"""

import configparser
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.store import Store

from scripts.fake_console import FakeConsole
from scripts.real_proxy import settled_rows, wait_until

HERE = Path(__file__).parent.parent
README = (HERE / "README.md").read_text(encoding="utf-8")
HANDBOOK = (HERE / "HANDBOOK.md").read_text(encoding="utf-8")
CONSTRAINTS = HERE / "scripts" / "constraints.txt"
NAME = "claude-usage-ledger"
UPSTREAM = "https://api.anthropic.com"


def shown() -> list[str]:
    """The lines that README shows to those without a checkout, without the remarks behind them."""
    found = re.search(r"^Without a checkout:\n\n```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found is not None
    return [line.partition("  #")[0].strip() for line in found[1].splitlines()]


*WAYS, START = shown()


def without_a_checkout(home: Path, *programs: Path) -> dict[str, str]:
    """An environment that leads to no checkout: a home of its own, and what is installed there."""
    path = os.pathsep.join([*map(str, programs), os.defpath])
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}


def installing(home: Path, *programs: Path) -> dict[str, str]:
    """The same, with what this machine says of registries, with this Python, and with the versions that are tested."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIPX_", "UV_", "PYTHON"))}
    settings = {
        "XDG_CONFIG_HOME": os.environ.get("XDG_CONFIG_HOME", str(Path.home() / ".config")),
        **dict.fromkeys(("PIP_CONSTRAINT", "UV_CONSTRAINT"), str(CONSTRAINTS)),
        "PIP_NO_COMPILE": "1",  # a third of the time, for code that is run once
        **dict.fromkeys(("PIPX_DEFAULT_PYTHON", "UV_PYTHON"), sys.executable),
    }
    return {**kept, **settings, **without_a_checkout(home, *programs)}


def run(*command: object, env: Mapping[str, str] | None = None, code: int = 0) -> str:
    """Run a command to its end; return what it says."""
    done = subprocess.run(
        [str(each) for each in command],
        cwd=None if env is None else env["HOME"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, HERE)
    (built,) = folder.glob("*.whl")
    return built


class Installed:
    """The wheel as somebody has it who followed a line of README: a home, and the folders that hold its programs."""

    def __init__(self, home: Path, wheel: Path, line: str) -> None:
        self.home = home
        self._wheel = wheel
        installer = line.split()[0]
        venv.create(home / "venv", with_pip=installer == "pip")
        tools = home / "venv" / "bin"
        if installer == "pip":
            self.programs = tools
        else:
            self.programs = home / ".local" / "bin"
            pip = (sys.executable, "-m", "pip", "--python", tools / "python")
            run(*pip, "install", "--quiet", installer, env=installing(home))
        self._install = installing(home, self.programs, tools)
        self.install(line)
        self.environment = without_a_checkout(home, self.programs)

    def install(self, line: str) -> None:
        """Install with the very words of a document."""
        run("bash", "-ec", re.sub(rf"{NAME}(?=$|\[|')", str(self._wheel), line), env=self._install)

    def run(self, *command: object, code: int = 0) -> str:
        return run(self.programs / str(command[0]), *command[1:], env=self.environment, code=code)


@pytest.fixture(scope="module", params=WAYS, ids=lambda line: line.split()[0])
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("home"), wheel, request.param)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], port: int) -> Iterator[Path]:
    """A proxy that listens, by its log; stopped as service managers do it."""
    folder = Path(environment["USAGE_LEDGER_DB"]).parent
    log = folder.with_name("mitmdump.log")
    with log.open("wb") as told:
        proxy = subprocess.Popen(command, cwd=folder, env=environment, stdout=told, stderr=told)
    try:
        wait_until(lambda: proxy.poll() is not None or accepts(port), seconds=60)
        assert proxy.poll() is None, log.read_text(encoding="utf-8")
        yield log
    finally:
        proxy.send_signal(signal.SIGTERM)
        proxy.wait(30)
    assert proxy.returncode == 0


def metered(port: int, ledger: Path) -> dict[str, Any]:
    """Ask for one stream, and return its row."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/messages",
        b'{"model":"claude-sonnet-4-6","stream":true}',
        {"content-type": "application/json", "x-api-key": "sk-ant-api03-R2D2-not-a-key-igAA"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert b"event: message_stop" in response.read()
    (row,) = settled_rows(ledger, 1)
    return row


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_stream_is_metered_without_a_checkout(installed: Installed, tmp_path: Path) -> None:
    """The line that starts mitmdump is README's as well, but for its port and where upstream is."""
    script = Path(installed.run("usage-ledger", "addon").rstrip("\n"))
    assert script.is_relative_to(installed.home)
    assert script.read_bytes() == (HERE / "addon" / "usage.py").read_bytes()
    ledger = tmp_path / "books" / "usage.db"
    ledger.parent.mkdir()
    port = free_port()
    with FakeConsole() as console:
        start = START.replace(UPSTREAM, console.address).replace("8080", str(port))
        environment = {**installed.environment, "USAGE_LEDGER_DB": str(ledger)}
        with running(["bash", "-c", f"exec {start}"], environment, port):
            row = metered(port, ledger)
    assert (row["usage_state"], row["input_tokens"], row["output_tokens"]) == ("complete", 12, 42)
    assert row["total_cost"] is not None
    assert "claude-sonnet-4-6" in installed.run("usage-ledger", "rows", "--db", ledger)


BY_PIP = pytest.mark.parametrize("installed", WAYS[:1], indirect=True, ids=["pip"])


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit that README shows, as a file."""
    (shown,) = re.findall(r"^  ```ini\n(.*?)^  ```$", README, re.MULTILINE | re.DOTALL)
    path = tmp_path / "usage-ledger.service"
    path.write_text(textwrap.dedent(shown), encoding="utf-8")
    return path


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze (Debian: systemd)")
def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    said = run("systemd-analyze", "verify", unit)
    assert [line for line in said.splitlines() if unit.name in line] == []


@BY_PIP
def test_the_unit_meters_and_writes_in_its_own_folder_alone(installed: Installed, unit: Path, tmp_path: Path) -> None:
    """As systemd runs it, but for where the package, the state, upstream and the port are.

    The journal has each line at once.
    """
    told = configparser.RawConfigParser()
    told.optionxform = str  # type: ignore[assignment, method-assign]
    told.read(unit)
    service = told["Service"]
    state = tmp_path / service["StateDirectory"]
    state.mkdir(mode=0o700)
    port = free_port()
    with FakeConsole() as console:
        places = {
            "/opt/usage-ledger": str(installed.home / "venv"),
            f"/var/lib/{service['StateDirectory']}": str(state),
            UPSTREAM: console.address,
            "8080": str(port),
        }

        def here(text: str) -> list[str]:
            for place, instead in places.items():
                text = text.replace(place, instead)
            return shlex.split(text)

        environment = {"PATH": os.defpath, **dict(each.split("=", 1) for each in here(service["Environment"]))}
        command = [*as_a_dynamic_user(state), *here(service["ExecStart"])]
        with running(command, environment, port) as log:
            wait_until(lambda: "listening at" in log.read_text(encoding="utf-8"))
            row = metered(port, state / "usage.db")
            wait_until(lambda: "usage recorded" in log.read_text(encoding="utf-8"))
    assert row["usage_state"] == "complete"
    assert (state / "usage.db").stat().st_mode & 0o777 == 0o600


def as_a_dynamic_user(state: Path) -> list[str]:
    """What runs a command as `DynamicUser=yes` does, where we have the rights; else nothing.

    That is a user that nobody is, without rights and without a home, to whom all but the state is read-only.
    """
    if os.geteuid():
        return []
    ids = 61_184  # the first that systemd gives to such users
    os.chown(state, ids, ids)
    mounts = f'mount --bind {state} {state} && mount -o remount,bind,ro / && cd {state} && exec "$@"'
    # The one right it has is to read: the package stands in pytest's folder here, which no other user may enter.
    rights = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search", "--no-new-privs")
    user = ("setpriv", f"--reuid={ids}", f"--regid={ids}", "--clear-groups", *rights)
    return ["unshare", "--mount", "sh", "-ec", mounts, "sh", *user]


@BY_PIP
@pytest.mark.parametrize(
    ("extra", "command", "code", "then"),
    [
        ("web", "usage-ledger serve --port {taken} --db {ledger}", 2, "cannot listen on port"),
        ("fleet", "usage-ledger push postgresql://127.0.0.1:{taken}/books --db {ledger}", 2, "Connection refused"),
        ("alerts", "mitmdump -ns {script} --set usage_alert_url=nonsense", 1, "no address that Apprise knows"),
    ],
    ids=["web", "fleet", "alerts"],
)
def test_what_needs_an_extra_says_the_line_that_installs_it(
    installed: Installed, tmp_path: Path, extra: str, command: str, code: int, then: str
) -> None:
    """The handbook says it as well. The command still fails afterwards, but as one that has what it needs."""
    (line,) = set(re.findall(rf"pip install '{NAME}\[{extra}\]'", HANDBOOK))
    ledger = tmp_path / "usage.db"
    Store(ledger, "normal", "abc").close()
    script = installed.run("usage-ledger", "addon").rstrip("\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        words = command.format(taken=taken.getsockname()[1], script=script, ledger=ledger).split()
        assert line in installed.run(*words, code=code)
        installed.install(line)
        assert then in installed.run(*words, code=code)
