"""What is fetched and not yet committed: changes for the store, results for the ledger."""

import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple

from discogs_crawler.broker.messages import CLASSES, Lease, Result
from discogs_crawler.store.layouts import Committed, Edit


class Item(NamedTuple):
    """One id that is settled; `data` for the store, None to remove it, or no change at all."""

    lease: Lease
    result: Result
    change: Edit | None


class Batch:
    """Items until the next commit."""

    def __init__(self) -> None:
        self._items: dict[int, Item] = {}
        self._since = 0.0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Item) -> None:
        if not self._items:
            self._since = time.monotonic()
        self._items[item.lease.id] = item

    def age_s(self) -> float:
        """Seconds since the first item came; 0 if there is none."""
        return time.monotonic() - self._since if self._items else 0

    def commit(
        self,
        store: Callable[[list[Edit]], Committed],
        report: Callable[[list[tuple[Lease, Result]]], Collection[int]],
    ) -> "Done":
        """Store the changes, then report the results of what is stored or had no change.

        When `store` or `report` raises, everything is still here.
        """
        items = [self._items[record_id] for record_id in sorted(self._items)]
        changes = [item.change for item in items if item.change]
        committed = store(changes) if changes else Committed("", frozenset(), frozenset(), 0, 0, 0)
        pairs = []
        for item in items:
            if item.change is None:
                pairs.append((item.lease, item.result))
            elif item.lease.id in committed.ids:
                changed = item.lease.id in committed.changed
                revision = committed.revision_of(item.lease.id)
                result = item.result._replace(changed=changed, commit=revision)
                pairs.append((item.lease, result))
        accepted = report(pairs)
        lost = [item.lease for item in items if item.lease.id not in accepted]
        self._items.clear()
        return Done(committed, [result for _, result in pairs if result.id in accepted], lost)

    def leases(self) -> list[Lease]:
        return [item.lease for item in self._items.values()]

    def reasons(self) -> str:
        """Why the records of the commit were asked for: `changed 97, new 3`."""
        counts = Counter(item.lease.reason for item in self._items.values() if item.change)
        return ", ".join(f"{reason} {counts[reason]}" for reason in CLASSES if counts[reason])


class Done(NamedTuple):
    """The result of committing a batch."""

    committed: Committed
    results: list[Result]
    """those that count"""
    lost: list[Lease]
    """leases that were no longer ours: other workers fetch these ids"""
