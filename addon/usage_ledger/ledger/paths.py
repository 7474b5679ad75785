"""Where the ledger is, and with which permissions it is made.

Room: ledger. Imports the standard library, `platformdirs` and `marks`. Promises that files are private from the moment
they exist: 0600, or 0660 in a setgid folder that its group may write, which is how several users share one ledger.
"""

import contextlib
import glob
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from usage_ledger.ledger.marks import LedgerError

ENVIRONMENT = "USAGE_LEDGER_DB"


def ledger_path(given: str | os.PathLike[str] | None = None) -> Path:
    """Return the ledger's absolute path: what is given, else `$USAGE_LEDGER_DB`, else the user's data folder.

    Raises `LedgerError` where that needs the home folder of somebody who has none.
    """
    chosen = str(given or "") or os.environ.get(ENVIRONMENT, "")
    try:
        return Path(chosen).expanduser().absolute() if chosen else _in_data_folder()
    except RuntimeError as error:
        needs = chosen or "the ledger"
        raise LedgerError(f"there is no home folder for {needs}; give the ledger's path without one") from error


def _in_data_folder() -> Path:
    import platformdirs  # only where nobody has said a path

    # Where nobody knows the user's home, older platformdirs leave a ~ in it, which would become a folder of that name.
    return Path(platformdirs.user_data_dir("usage-ledger", appauthor=False)).expanduser() / "usage.db"


def shared_by_group(folder: Path) -> bool:
    """Whether the folder is one that a group shares (setgid and group-writable)."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_ISGID and mode & stat.S_IWGRP)


def make_private_folder(folder: Path) -> None:
    """Make the folder if there is none: 0700, or 2770 inside a folder that a group shares."""
    if folder.is_dir():
        return
    if not folder.parent.is_dir():
        make_private_folder(folder.parent)
    shared = shared_by_group(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return  # another process was faster
    if shared:
        folder.chmod(0o2770)


def open_private_file(path: Path, flags: int) -> int:
    """Open a file by descriptor with `flags`, and see to it that a new one is private."""
    try:
        return make_private_file(path, flags)
    except FileExistsError:
        return os.open(path, flags | os.O_CLOEXEC)


def make_private_file(path: Path, flags: int) -> int:
    """Make a private file and open it by descriptor; raise FileExistsError, and open nothing, where there is one."""
    mode = 0o660 if shared_by_group(path.parent) else 0o600
    descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    os.fchmod(descriptor, mode)  # the umask may have taken the group's rights away
    return descriptor


def sidecars(ledger: Path) -> tuple[Path, Path]:
    """Return the names that SQLite gives to the files beside a ledger that is open: its -wal and its -shm."""
    return ledger.with_name(ledger.name + "-wal"), ledger.with_name(ledger.name + "-shm")


def refuse_name_of_sqlite(path: Path) -> None:
    """Raise FileExistsError for a name under which SQLite would take a file for its own, and remove it."""
    if path.name.endswith(("-journal", "-wal", "-shm")):
        raise FileExistsError(f"{path} is a name that SQLite gives to files of its own; name another file")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give the path of a new private file that takes its name, synced, once it is whole.

    Raises FileExistsError where there is a file of that name, also at the end: nothing is ever replaced. Of any other
    OSError, also of the caller's, the text says which file could not be written.
    """
    if str(path) == "-":
        raise FileExistsError("- stands for stdout, where this is not written; name a file")
    path = path.absolute()
    refuse_name_of_sqlite(path)
    try:
        with _new_file(path) as unfinished:
            yield unfinished
    except OSError as error:
        if error.errno is None or isinstance(error, FileExistsError):
            raise
        raise OSError(f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.unfinished"):
        if not _is_running(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)  # of one that was killed
    if os.path.lexists(path):
        raise FileExistsError(f"{path} is there already; name another file")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    unfinished.unlink(missing_ok=True)
    os.close(make_private_file(unfinished, os.O_RDWR))
    try:
        yield unfinished
        _sync(unfinished)
        _name(unfinished, path)
        _sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _name(unfinished: Path, path: Path) -> None:
    """Give a file its name. A link, other than renaming, never replaces a file; not every file system has links."""
    try:
        path.hardlink_to(unfinished)
    except FileExistsError as error:
        raise FileExistsError(f"{path} was made meanwhile; name another file") from error
    except OSError:
        if os.path.lexists(path):
            raise FileExistsError(f"{path} was made meanwhile; name another file") from None
        unfinished.rename(path)


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
