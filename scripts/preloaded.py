"""The project's programs in processes that need not load anything first: they are forked from one that has.

mitmdump takes most of a second to load what it needs, a command up to half of one, and the tests start some thousand of
them. What runs is the same code, in a process of its own with its own arguments, environment, folder and output. Tests
of what is loaded, or of what the interpreter itself makes of its environment, start real ones.
"""

import atexit
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from usage_ledger.cli.main import COMMANDS

PROGRAMS = {
    "mitmdump": ("mitmproxy.tools.main", "mitmdump"),
    "mitmweb": ("mitmproxy.tools.main", "mitmweb"),
    "usage-ledger": ("usage_ledger.cli.main", "run"),
}
"""What can be started, each with its module and what is called in it without arguments."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        *("scripts.preloaded", "mitmproxy.tools.main", "mitmproxy.tools.dump", "mitmproxy.io", "genai_prices"),
        *("sqlite_utils", "msgspec", "platformdirs", "usage_ledger.ledger.store", "usage_ledger.ledger.editing"),
        *("usage_ledger.prices.pricer", "usage_ledger.prices.listed", "usage_ledger.flows.files"),
        *COMMANDS.values(),
    ]
)


class Program:
    """A running program, as `subprocess.Popen` has it, with a pipe for each of its outputs or, `merged`, for both."""

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        *,
        merged: bool = False,
    ) -> None:
        self.args = [os.fspath(each) for each in command]
        pipes = [_server.Pipe(duplex=False) for _ in range(1 if merged else 2)]
        environment = dict(os.environ if env is None else env)
        arguments = (self.args, environment, os.fspath(cwd or Path.cwd()), *(theirs for _, theirs in pipes))
        self._process = _server.Process(target=_become, args=arguments, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        for _, theirs in pipes:
            theirs.close()
        texts = [
            os.fdopen(os.dup(ours.fileno()), encoding="utf-8", errors="surrogateescape", newline="")
            for ours, _ in pipes
        ]
        self.stdout = texts[0]
        self.stderr = None if merged else texts[1]

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Wait for the end; return what was said on stdout and stderr."""
        late = threading.Timer(timeout, self.kill)
        late.start()
        with ThreadPoolExecutor(1) as pool:
            said = pool.submit(_all, self.stderr)
            told = _all(self.stdout)
        self.wait()
        if late.finished.is_set():
            raise subprocess.TimeoutExpired(self.args, timeout, told, said.result())
        late.cancel()
        return told, said.result()


def _all(output: IO[str] | None) -> str:
    if output is None:
        return ""
    with output:
        return output.read()


def run(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float = 60,
) -> "subprocess.CompletedProcess[str]":
    """Run a command of the tool to its end; stdin is empty, its output UTF-8."""
    program = Program(["usage-ledger", *map(str, arguments)], env, cwd)
    out, err = program.communicate(timeout)
    return subprocess.CompletedProcess(program.args, program.wait(), out, err)


def _become(command: list[str], environment: dict[str, str], folder: str, *outputs: Any) -> None:
    """Be what was asked for, in a process that has just been forked."""
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (outputs[0].fileno(), 1), (outputs[-1].fileno(), 2)):
        os.dup2(here, there)
    os.close(nothing)
    for output in outputs:
        output.close()
    sys.argv = command
    unbuffered = bool(environment.get("PYTHONUNBUFFERED"))
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8", "surrogateescape")
    for name, number, errors in (("stdout", 1, "surrogateescape"), ("stderr", 2, "backslashreplace")):
        raw = io.FileIO(number, "w", closefd=False)
        buffer: Any = raw if unbuffered else io.BufferedWriter(raw)
        setattr(
            sys, name, io.TextIOWrapper(buffer, "utf-8", errors, line_buffering=number == 2, write_through=unbuffered)
        )
    module, name = PROGRAMS[Path(command[0]).name]
    main: Callable[[], None] = getattr(import_module(module), name)
    try:
        main()
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # multiprocessing leaves these out
