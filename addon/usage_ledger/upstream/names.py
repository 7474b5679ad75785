"""Names: what both sides call models, keys and workspaces, made the same.

Room: upstream. Imports the standard library, the ledger and its neighbours in this room.
"""

from collections.abc import Iterable, Sequence

from usage_ledger.ledger.adjustments import Adjustment
from usage_ledger.ledger.bill import KeyLine, UsageLine
from usage_ledger.upstream.answers import BillError
from usage_ledger.upstream.days import Bill
from usage_ledger.upstream.models import plain_name

NO_KEYS = "without the list of API keys nobody knows which row is whose: usage-ledger fetch keys"


def ids_by_name(keys: Iterable[KeyLine], by_name: bool) -> dict[str, list[str]]:
    """Return the ids of the keys that are called so: by their id, by what the Console shows of them, or `by_name`."""
    found: dict[str, list[str]] = {}
    for key in keys:
        for said in {key.id, key.hint, key.name if by_name else None} - {None}:
            found.setdefault(str(said), []).append(key.id)
    return found


class Names:
    """What both sides call models, keys and workspaces, made the same.

    A row knows a key by what the Console shows of it (`sk-ant-api03-R2D...igAA`), the bill by its id, a CSV by its
    name; the list of keys has all three.
    """

    def __init__(self, keys: Sequence[KeyLine], bill: Bill, by: Sequence[str]) -> None:
        """Raise `BillError` where a dimension cannot be compared at all."""
        if "key" in by and not keys:
            raise BillError(NO_KEYS)
        if "workspace" in by and bill.from_names:
            raise BillError("a Console's CSV has names of workspaces, where rows have ids: usage-ledger fetch usage")
        self._by = by
        self._keys = {key.id: key for key in keys}
        self._ids = ids_by_name(keys, by_name=bool(bill.from_names))  # the API says ids
        shared = [ids for ids in self._ids.values() if len(set(ids)) > 1]
        self._shared = {each for ids in shared for each in ids} | {
            said for said, ids in self._ids.items() if ids in shared
        }
        self._workspaces = {line.workspace for lines in bill.days.values() for line in lines} - {None}

    def is_ambiguous(self, key: str | None) -> bool:
        """Whether a key is one of several that are called the same."""
        return "key" in self._by and key in self._shared

    def theirs(self, day: str, line: UsageLine) -> tuple[str, ...]:
        return self._chosen(day, line.model, self._key(line.api_key), line.workspace or "default")

    def ours(self, day: str, model: str | None, key: str | None, workspace: str | None) -> tuple[str, ...]:
        ids = self._ids.get(key or "", [])
        # Responses name the default workspace by an id, which the bill does not have.
        place = workspace if workspace in self._workspaces else None
        if len(ids) == 1:
            place = self._keys[ids[0]].workspace
        return self._chosen(day, model, self._key(key), place or "default")

    def adjusted(self, made: Adjustment) -> tuple[str, ...]:
        return self._chosen(made.day, made.model, made.api_key or "(none)", made.workspace or "default")

    def _key(self, said: str | None) -> str:
        ids = self._ids.get(said or "", [])
        return ids[0] if len(ids) == 1 else said or "(none)"

    def _chosen(self, day: str, model: str | None, key: str, workspace: str) -> tuple[str, ...]:
        told = {"day": day, "model": plain_name(model or "(none)"), "key": key, "workspace": workspace}
        return tuple(told[name] for name in self._by)
