"""The scripts a person runs on a checkout."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts import preloaded
from scripts.real_proxy import wait_until

ROOT = Path(__file__).parent.parent


def test_the_demo_does_the_whole_job_and_its_replay_changes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.run_demo"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 requests reached the Console, 8 rows are in the ledger" in done.stdout
    assert "the replay changed nothing" in done.stdout
    for reason in ("no_usage_data", "client_disconnected", "upstream_closed"):
        assert reason in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["while mitmdump starts", "once it listens"])
def test_a_demo_that_is_interrupted_leaves_no_process_and_no_file(tmp_path: Path, when: str) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-u", "-m", "scripts.run_demo"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout is not None
    if when == "once it listens":
        assert "listens at" in demo.stdout.readline()
    else:
        wait_until(lambda: list(tmp_path.glob("*/mitmproxy-*")))
    os.killpg(demo.pid, signal.SIGINT)
    demo.wait(30)
    demo.stdout.close()
    assert demo.returncode == 130

    def group_is_gone() -> bool:
        try:
            os.killpg(demo.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(group_is_gone)
    assert list(tmp_path.iterdir()) == []


def test_the_samples_are_made_anew_by_one_command_and_say_the_same(tmp_path: Path) -> None:
    """But for when it was, and the ids that come from that."""
    of_the_time = {"id", "occurred_at", "completed_at", "duration_ms"}

    def rows_in(folder: Path) -> dict[str, list[dict[str, object]]]:
        return {
            path.name: [
                {name: value for name, value in row.items() if name not in of_the_time}
                for row in json.loads(path.read_text(encoding="utf-8"))
            ]
            for path in folder.glob("*.json")
        }

    temporary, made = tmp_path / "temporary", tmp_path / "made"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "scripts.make_samples", made],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert rows_in(made) == rows_in(ROOT / "data" / "flows")
    assert {path.name for path in made.iterdir()} == {path.name for path in (ROOT / "data" / "flows").iterdir()}
    assert list(temporary.iterdir()) == []


def test_without_a_fitting_python_a_script_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    for name in ("scripts/setup.sh", "scripts/lint", "pyproject.toml", "scripts/constraints.txt", ".python-version"):
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "cat", "cksum", "dirname", "rm", "flock"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    done = subprocess.run(
        ["/usr/bin/bash", "scripts/lint"],
        cwd=checkout,
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "Python 3.12" in done.stderr


@pytest.mark.parametrize("name", ["scripts/constraints.txt", "pyproject.toml"])
def test_no_registry_address_is_committed(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text


def test_every_dependency_is_held_by_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    held = {line.partition("==")[0].lower().replace("_", "-") for line in _constraints()}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {"".join(c for c in text.split(">")[0].split("[")[0]).strip().lower() for text in wanted}
    assert names - held == set()


def _constraints() -> list[str]:
    lines = (ROOT / "scripts" / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("arguments", [["nonsense"], ["0"], ["-1"], ["5", "6"]])
def test_fuzzing_for_no_number_of_seconds_is_refused_in_one_line(arguments: list[str]) -> None:
    done = subprocess.run([ROOT / "scripts" / "fuzz", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "usage: ./scripts/fuzz [SECONDS]\n")


def test_the_fuzz_target_runs_and_finds_nothing_in_a_moment(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.fuzz_reader", "2"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fuzzing with" in done.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["rows", "--db", "there is none"], ["nonsense"], []], ids=str)
def test_a_preloaded_command_is_what_a_real_one_is(tmp_path: Path, arguments: list[str]) -> None:
    """In its exit code and in what it says, with an environment and a folder of its own."""
    environment = {**os.environ, "PYTHONUTF8": "1", "COLUMNS": "60"}
    real = subprocess.run(
        [Path(sys.executable).with_name("usage-ledger"), *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    done = preloaded.run(*arguments, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (real.returncode, real.stdout, real.stderr)
