"""README and handbook say what is so: commands and columns are shown as they are, options are the addon's."""

import re
from pathlib import Path

import click
import pytest
from usage_ledger.cli.main import COMMANDS, main
from usage_ledger.proxy.options import declare

from scripts.reference import replaced

HERE = Path(__file__).parent.parent
HANDBOOK = (HERE / "HANDBOOK.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(HERE.glob("*.md"))


def test_what_is_shown_of_the_commands_is_what_they_say() -> None:
    """Where this fails, run ./scripts/reference."""
    assert replaced(HANDBOOK) == HANDBOOK


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_an_example_and_a_place_above_the_reference(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    told = command.help or ""
    assert re.search(r"Examples?:", told)
    assert f"usage-ledger {name}" in HANDBOOK.partition("## Reference")[0]


class Declared:
    """Takes options as mitmproxy's loader does."""

    def __init__(self) -> None:
        self.defaults: dict[str, str] = {}

    def add_option(self, name: str, _kind: type, default: str, _help: str, **_more: object) -> None:
        self.defaults[name] = default


def test_each_option_of_the_addon_is_there_with_its_default() -> None:
    loader = Declared()
    declare(loader)  # type: ignore[arg-type]
    told = dict(re.findall(r"^\| `(usage_\w+)` \| `(.*?)` \|", HANDBOOK, re.MULTILINE))
    assert {name: value.replace("\\|", "|") for name, value in told.items()} == {
        name: str(value) or '""' for name, value in loader.defaults.items()
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_link_leads_to_something(document: Path) -> None:
    """A file of the project, and a heading in it."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        led_to = HERE / name if name else document
        assert led_to.exists(), target
        headings = re.findall(r"^#+ (.*)$", led_to.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
        anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
        assert not heading or heading in anchors, target
