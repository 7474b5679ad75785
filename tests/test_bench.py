"""The benchmarks measure what they say; how long that takes is nobody's to assert."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from usage_ledger.cli.main import main

from scripts import many_rows
from scripts.rounds import Measured, measure, percentile, ratio
from scripts.simulate import fill

ROOT = Path(__file__).parent.parent


def test_sides_are_measured_in_turn_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = measure({"a": lambda: side("a"), "b": lambda: side("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert found == {"a": Measured((3.0, 5.0)), "b": Measured((4.0, 6.0))}


def test_a_ratio_is_that_of_each_round() -> None:
    told = ratio(Measured((1.0, 4.0, 9.0)), Measured((1.0, 2.0, 3.0)))
    assert told == Measured((1.0, 2.0, 3.0))
    assert told.told("{:.1f}") == "2.0 (1.0 to 3.0)"


def test_a_percentile_is_one_of_the_numbers() -> None:
    assert [percentile([3, 1, 2], share) for share in (0, 0.5, 0.99)] == [1, 2, 3]


@pytest.mark.parametrize("with_limits", [False, True])
def test_very_many_rows_are_as_real_ones(tmp_path: Path, with_limits: bool) -> None:
    path = many_rows.make(tmp_path / "usage.db", 500, with_limits)
    for arguments in (["summary", "--by", "day,model"], ["verify"], ["export"]):
        result = CliRunner().invoke(main, [*arguments, "--db", str(path)])
        assert result.exception is None or result.exit_code in (0, 1), (arguments, result.output)
    fill(tmp_path / "other.db", 0, 500)
    sizes = [each.stat().st_size for each in (path, tmp_path / "other.db")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.5) or with_limits


def test_a_part_prints_a_line_of_a_table_for_each_figure() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench", "start"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    heading, _, columns, _, line = done.stdout.splitlines()
    assert "mitmproxy" in heading
    assert columns.count("|") == line.count("|") == 6
    assert "usage-ledger --version" in line
