"""The house: which room may import what, and that each module says which room it is in."""

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "addon"
PACKAGE = SOURCE / "usage_ledger"
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
MAY: dict[str, set[str]] = {
    "messages": set(),
    "ledger": set(),
    "prices": {"ledger"},
    "upstream": {"ledger"},
    "flows": {"ledger", "messages"},
    "proxy": {"flows", "ledger", "messages", "prices"},
    "fleet": {"ledger"},
    "web": {"ledger", "upstream"},
    "cli": {"fleet", "flows", "ledger", "messages", "prices", "upstream", "web"},
}
"""Which rooms a room may import from; so CONTRIBUTING says it."""

NEVER = {
    # Whoever opens one of these rooms does not pay for (nor depend on) these.
    "messages": {"sqlite3", "sqlite_utils", "click", "genai_prices"},
    "ledger": {"click", "genai_prices"},
    "prices": {"sqlite3", "sqlite_utils", "click"},
    "upstream": {"sqlite3", "sqlite_utils", "click"},
    "flows": {"sqlite3", "sqlite_utils", "click"},
    "proxy": {"sqlite3", "sqlite_utils", "click"},
    "fleet": {"sqlite3", "sqlite_utils", "click", "genai_prices"},
    "web": {"sqlite_utils", "click", "genai_prices"},
    "cli": {"sqlite3", "sqlite_utils"},
}

HEAVY = [
    *("mitmproxy", "sqlite_utils", "platformdirs", "msgspec", "pydantic", "genai_prices", "asyncio", "psycopg"),
    *("datasette", "pygal", "uvicorn", "termgraph"),
]


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def imported(path: Path) -> Iterator[str]:
    """Every module that a module imports, also inside its functions and under `TYPE_CHECKING`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def belongs_to(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_flows_and_the_proxy_import_mitmproxy(path: Path) -> None:
    if not {PACKAGE / "flows", PACKAGE / "proxy"} & set(path.parents):
        assert not [name for name in imported(path) if belongs_to(name, "mitmproxy")]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_fleet_imports_psycopg(path: Path) -> None:
    if PACKAGE / "fleet" not in path.parents:
        assert not [name for name in imported(path) if belongs_to(name, "psycopg")]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_web_imports_datasette(path: Path) -> None:
    if PACKAGE / "web" not in path.parents:
        found = set(imported(path))
        assert not [name for name in found if any(belongs_to(name, each) for each in ("datasette", "pygal", "uvicorn"))]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_room_reaches_into_one_it_must_not_know(path: Path) -> None:
    never = NEVER.get(path.relative_to(PACKAGE).parts[0], set())
    assert not [name for name in imported(path) if any(belongs_to(name, package) for package in never)]


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent != PACKAGE], ids=name_of)
def test_a_room_imports_only_the_rooms_it_is_given(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    named = (name.split(".") for name in imported(path) if name.startswith("usage_ledger."))
    assert {parts[1] for parts in named} & set(ROOMS) <= MAY[room] | {room}


def test_contributing_says_who_may_import_whom() -> None:
    told = (SOURCE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", told, re.MULTILINE)
    assert {room: set(re.findall(r"\w+", rooms)) for room, rooms in rows} == MAY


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_module_says_which_room_it_is_in(path: Path) -> None:
    """A package's own module may be its docstring alone; what lies beside the rooms is in none."""
    told = ast.get_docstring(ast.parse(path.read_text()))
    assert told
    room = path.relative_to(PACKAGE).parts[0]
    if path.name == "__init__.py":
        assert path.parent == PACKAGE or told.startswith(f"{room}: ")
    elif room in ROOMS:
        assert f"\nRoom: {room}" in told


def test_every_room_is_a_package() -> None:
    assert set(MAY) == set(ROOMS) == set(NEVER)


def test_the_script_is_a_door_and_nothing_else() -> None:
    docstring, *imports, addons = ast.parse((SOURCE / "usage.py").read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert imports
    assert all(isinstance(each, ast.ImportFrom) for each in imports)
    assert ast.unparse(addons).startswith("addons = [")


def loaded_by(code: str) -> set[str]:
    """The modules that are in memory after a fresh interpreter has run this."""
    tell = "import json, sys, os; sys.stdout.flush(); os.write(2, json.dumps(sorted(sys.modules)).encode())"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{code}\n{tell}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(json.loads(done.stderr))


@functools.cache
def loaded_by_command(*arguments: str) -> set[str]:
    return loaded_by(f"from usage_ledger.cli.main import run\ntry: run({arguments!r})\nexcept SystemExit: pass")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        *(
            (name, "--help")
            for name in ("rows", "export", "price", "summary", "review", "backfill", "inspect", "push", "pull")
        ),
    ],
)
@pytest.mark.parametrize("heavy", HEAVY)
def test_asking_for_help_loads_nothing_heavy(arguments: tuple[str, ...], heavy: str) -> None:
    assert heavy not in loaded_by_command(*arguments)


@pytest.fixture(scope="module")
def loaded_by_reading(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    path = tmp_path_factory.mktemp("read") / "usage.db"
    writing = "from usage_ledger.ledger.store import Store; from pathlib import Path"
    assert "sqlite_utils" in loaded_by(f"{writing}; Store(Path({str(path)!r}), 'full', 'abc').close()")
    return loaded_by_command("export", "--db", str(path))


@pytest.mark.parametrize("heavy", [name for name in HEAVY if name != "asyncio"])
def test_reading_loads_nothing_that_only_writing_needs(loaded_by_reading: set[str], heavy: str) -> None:
    assert heavy not in loaded_by_reading


def test_the_messages_room_runs_without_mitmproxy_and_sqlite() -> None:
    modules = [name_of(path).removesuffix(".py").replace("/", ".") for path in (PACKAGE / "messages").glob("*.py")]
    loaded = loaded_by("\n".join(f"import {name.removesuffix('.__init__')}" for name in modules))
    assert "usage_ledger.messages.sse" in loaded
    assert not loaded & {"mitmproxy", "sqlite3", "usage_ledger.ledger"}


def test_opening_the_house_opens_no_room() -> None:
    assert not [name for name in loaded_by("import usage_ledger") if name.startswith("usage_ledger.")]
