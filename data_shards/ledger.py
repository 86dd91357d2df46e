"""Books over every input: what was seen is either used or rejected with a reason."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEDGERS = ("files", "radiographs", "boxes")


class Ledgers:
    """Three books, `files`, `radiographs` and `boxes`, over ids."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, dict[str, str] | None]] = {name: {} for name in LEDGERS}

    def see(self, ledger: str, id_: str) -> None:
        """Enter an input; it counts as used until it is rejected."""
        self._seen[ledger].setdefault(id_, None)

    def reject(self, ledger: str, id_: str, reason: str, twin: str = "") -> None:
        """Enter an input as not used, with the first reason found and the id of its twin if it is a duplicate."""
        if self._seen[ledger].get(id_) is None:
            self._seen[ledger][id_] = {"reason": reason, **({"twin": twin} if twin else {})}

    def used(self, ledger: str) -> Iterator[str]:
        """Ids that are used, in the order seen."""
        return (id_ for id_, rejection in self._seen[ledger].items() if rejection is None)

    def is_used(self, ledger: str, id_: str) -> bool:
        """Whether this input was seen and not rejected."""
        return self._seen[ledger].get(id_, {}) is None

    def reason(self, ledger: str, id_: str) -> str:
        """Why this input is not used; empty where it is."""
        rejection = self._seen[ledger].get(id_)
        return rejection["reason"] if rejection else ""

    def totals(self) -> dict[str, dict[str, int]]:
        """`{"files": {"seen", "used", "rejected"}, ...}`, balanced."""
        totals = {}
        for name, entries in self._seen.items():
            used = sum(rejection is None for rejection in entries.values())
            rejected = sum(rejection is not None for rejection in entries.values())
            totals[name] = {"seen": len(entries), "used": used, "rejected": rejected}
        return totals

    def reasons(self) -> dict[str, Counter[str]]:
        """How often each reason was given, by ledger."""
        return {
            name: Counter(rejection["reason"] for rejection in entries.values() if rejection is not None)
            for name, entries in self._seen.items()
        }

    def write_rejected(self, path: Path) -> None:
        """One JSON object a rejected input: `ledger`, `id`, `reason`, a duplicate's `twin`; by ledger and id."""
        with path.open("w", encoding="utf-8") as file:
            for name, entries in self._seen.items():
                for id_, rejection in sorted(entries.items()):
                    if rejection is not None:
                        line: dict[str, Any] = {"ledger": name, "id": id_, **rejection}
                        file.write(json.dumps(line) + "\n")
