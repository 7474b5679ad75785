"""The README says what is so: what it shows of the commands is their own, and its options are the addon's."""

import re
from pathlib import Path

import click
import pytest
from usage_ledger.cli.main import COMMANDS, main
from usage_ledger.proxy.options import declare

from scripts.reference import replaced

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_what_is_shown_of_the_commands_is_what_they_say() -> None:
    """Where this fails, run ./scripts/reference."""
    assert replaced(README) == README


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_an_example_and_a_place_above_the_reference(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    told = command.help or ""
    assert re.search(r"Examples?:", told)
    assert f"usage-ledger {name}" in README.partition("## Reference")[0]


class Declared:
    """Takes options as mitmproxy's loader does."""

    def __init__(self) -> None:
        self.defaults: dict[str, str] = {}

    def add_option(self, name: str, _kind: type, default: str, _help: str, **_more: object) -> None:
        self.defaults[name] = default


def test_each_option_of_the_addon_is_there_with_its_default() -> None:
    loader = Declared()
    declare(loader)  # type: ignore[arg-type]
    told = dict(re.findall(r"^\| `(usage_\w+)` \| `(.*?)` \|", README, re.MULTILINE))
    assert {name: value.replace("\\|", "|") for name, value in told.items()} == {
        name: str(value) or '""' for name, value in loader.defaults.items()
    }
