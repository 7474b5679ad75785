"""Paths: where the ledger is, and that nobody else can read it."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from usage_ledger.ledger.marks import LedgerError
from usage_ledger.ledger.paths import ENVIRONMENT, ledger_path, make_private_folder, open_private_file
from usage_ledger.ledger.presence import Presence, writers_folder
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store

from scripts.real_proxy import ADDON, mitmproxys


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):o}"


@pytest.fixture(params=[0o022, 0o077, 0o000], ids=["umask022", "umask077", "umask000"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A setgid folder that its group may write."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o2770)
    return folder


def modes_of_an_open_ledger(path: Path) -> dict[str, str]:
    """Write a row, and while the ledger is open say the mode of everything that is there."""
    presence = Presence(path, "abc")
    with closing(Store(path, "full", "abc")) as store:
        store.write([Entry(Record(id="a", occurred_at="2026-11-01T00:00:00.000Z", host="h", path="/"))], [])
        names = [path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm"), writers_folder(path)]
        found = {name.name: mode(name) for name in names}
        found["lock"] = mode(writers_folder(path) / "abc.lock")
    presence.leave()
    return found


def test_a_given_path_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "environment.db"))
    assert ledger_path(tmp_path / "given.db") == tmp_path / "given.db"


@pytest.mark.parametrize("given", [None, ""])
def test_the_environment_comes_before_the_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str | None
) -> None:
    monkeypatch.setenv("USAGE_LEDGER_DB", str(tmp_path / "environment.db"))
    assert ledger_path(given) == tmp_path / "environment.db"


@pytest.mark.parametrize("environment", [None, ""])
def test_without_either_the_ledger_is_in_the_users_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    if environment is None:
        monkeypatch.delenv(ENVIRONMENT, raising=False)
    else:
        monkeypatch.setenv(ENVIRONMENT, environment)
    path = ledger_path()
    assert path.parts[-2:] == ("usage-ledger", "usage.db")
    assert path.is_relative_to(tmp_path)


@pytest.mark.parametrize("through", ["given", "environment"])
def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, through: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(ENVIRONMENT, "~/books/usage.db")
    assert ledger_path("~/books/usage.db" if through == "given" else None) == tmp_path / "books/usage.db"


@pytest.mark.parametrize("through", ["given", "environment"])
def test_a_tilde_that_is_nobodys_home_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, through: str) -> None:
    monkeypatch.setenv(ENVIRONMENT, "~nosuchuser/usage.db")
    with pytest.raises(LedgerError, match=r"no home folder for ~nosuchuser/usage\.db") as refused:
        ledger_path("~nosuchuser/usage.db" if through == "given" else None)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("through", ["option", "environment"])
def test_the_addon_takes_it_for_an_option_that_cannot_work(tmp_path: Path, through: str) -> None:
    path = "~nosuchuser/usage.db"
    arguments = ["-s", str(ADDON), "--set", f"confdir={tmp_path}", "--listen-host", "127.0.0.1", "-p", "0"]
    done = subprocess.run(
        [mitmproxys("mitmdump"), *arguments, *(["--set", f"usage_db={path}"] if through == "option" else [])],
        env={**os.environ, "USAGE_LEDGER_DB": path},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode != 0
    assert f"usage_db: there is no home folder for {path}" in done.stdout + done.stderr
    assert "OptionsError" in done.stdout + done.stderr


def test_without_any_home_there_is_no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a user that nobody has told it about; `~` would become a folder of that name."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(os.path, "expanduser", str)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    with pytest.raises(LedgerError, match="no home folder"):
        ledger_path()


def test_a_relative_path_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert ledger_path("usage.db") == tmp_path / "usage.db"


def test_asking_for_the_path_makes_nothing(tmp_path: Path) -> None:
    ledger_path(tmp_path / "a" / "b" / "usage.db")
    assert not list(tmp_path.iterdir())


def test_a_ledger_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "deep" / "er"
    found = modes_of_an_open_ledger(folder / "usage.db")
    assert found == {
        "usage.db": "600",
        "usage.db-wal": "600",
        "usage.db-shm": "600",
        "usage.db-writers": "700",
        "lock": "600",
    }
    assert (mode(folder), mode(folder.parent)) == ("700", "700")


def test_in_a_folder_that_a_group_shares_the_group_may_write(shared: Path, umask: int) -> None:
    assert modes_of_an_open_ledger(shared / "usage.db") == {
        "usage.db": "660",
        "usage.db-wal": "660",
        "usage.db-shm": "660",
        "usage.db-writers": "2770",
        "lock": "660",
    }


def test_a_new_folder_inside_a_shared_one_is_shared_too(shared: Path, umask: int) -> None:
    make_private_folder(shared / "a" / "b")
    assert (mode(shared / "a"), mode(shared / "a" / "b")) == ("2770", "2770")


@pytest.mark.parametrize("bits", [0o2750, 0o0770], ids=["setgid alone", "group-writable alone"])
def test_half_a_shared_folder_is_not_shared(tmp_path: Path, bits: int) -> None:
    folder = tmp_path / "half"
    folder.mkdir()
    folder.chmod(bits)
    os.close(open_private_file(folder / "usage.db", os.O_RDWR))
    assert mode(folder / "usage.db") == "600"


def test_folders_and_files_that_are_there_keep_their_modes(tmp_path: Path) -> None:
    folder, file = tmp_path / "mine", tmp_path / "mine" / "usage.db"
    folder.mkdir()
    folder.chmod(0o755)
    file.touch()
    file.chmod(0o640)
    make_private_folder(folder)
    os.close(open_private_file(file, os.O_RDWR))
    assert (mode(folder), mode(file)) == ("755", "640")
