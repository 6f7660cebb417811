"""The leases that a worker holds, kept alive however long a commit or a pause takes."""

import logging
import threading
from collections.abc import Collection, Iterable, Sequence

from discogs_crawler.broker.messages import Lease, Result
from discogs_crawler.broker.queue import Queue
from discogs_crawler.errors import CrawlerError

log = logging.getLogger(__name__)

# Renewals within the time of a lease: two may fail before it lapses.
RENEWALS = 3


class Leases:
    """What `owner` has claimed from the queue and not yet settled; renewed by a thread."""

    def __init__(
        self,
        queue: Queue,
        owner: str,
        lease_s: float,
        segments: Collection[int] | None,
        branch: str,
    ) -> None:
        self._queue, self._owner = queue, owner
        self._segments, self._branch = segments, branch
        self.used = 0
        """ids claimed, without those that went back or lapsed before they had an answer"""
        self._held: dict[int, Lease] = {}
        self._lapsed = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._period_s = lease_s / RENEWALS
        self._keeper = threading.Thread(target=self._keep, name="leases", daemon=True)
        self._keeper.start()

    def __len__(self) -> int:
        return len(self._held)

    def claim(self, count: int) -> list[Lease]:
        """Up to `count` more, ascending by id; none if the queue has none for us now."""
        found = self._queue.claim(self._owner, count, self._segments, self._branch)
        with self._lock:
            self._held.update({lease.id: lease for lease in found})
            self.used += len(found)
        return found

    def renew(self, leases: Iterable[Lease]) -> set[int]:
        """The ids of those that are still ours, for a whole lease from now."""
        return self._queue.renew(leases)

    def complete(self, pairs: Sequence[tuple[Lease, Result]]) -> set[int]:
        """Report results; the ids whose lease was still ours, so that the result counts."""
        accepted = self._queue.complete(pairs)
        self.forget(lease for lease, _ in pairs)
        return accepted

    def delay(self, lease: Lease, seconds: float, *, count_attempt: bool) -> None:
        self._queue.delay(lease, seconds, count_attempt=count_attempt)
        self.forget([lease], used=count_attempt)

    def give_back(self, leases: Iterable[Lease]) -> None:
        given = list(leases)
        self._queue.give_back(given)
        self.forget(given, used=False)

    def give_back_all(self) -> int:
        """End the renewals, make all that we still hold pending again, and return its number."""
        self._ended.set()
        self._keeper.join()
        left = list(self._held.values())
        self.give_back(left)
        return len(left)

    def take_lapsed(self) -> int:
        """The number lapsed since the last call: other workers fetch those ids."""
        with self._lock:
            lapsed, self._lapsed = self._lapsed, 0
        return lapsed

    def ours_of(self, leases: Iterable[Lease]) -> list[Lease]:
        """Those which, as far as we know, have not lapsed."""
        return [lease for lease in leases if self._has(lease)]

    def forget(self, leases: Iterable[Lease], *, used: bool = True) -> None:
        """Renew them no more; a newer lease of the same id is another one."""
        with self._lock:
            for lease in leases:
                if self._has(lease):
                    del self._held[lease.id]
                    self.used -= not used

    def _keep(self) -> None:
        while not self._ended.wait(self._period_s):
            with self._lock:
                held = list(self._held.values())
            try:
                lost = {lease.id for lease in held} - self._queue.renew(held)
            except CrawlerError as error:
                # Claiming and reporting meet the same error, and handle it.
                log.debug("leases are not renewed now: %s", error)
                continue
            lapsed = [lease for lease in held if lease.id in lost and self._has(lease)]
            if lapsed:
                log.info("%d leases have lapsed; other workers fetch these ids", len(lapsed))
                self.forget(lapsed, used=False)
                with self._lock:
                    self._lapsed += len(lapsed)

    def _has(self, lease: Lease) -> bool:
        """Still, and not settled meanwhile."""
        return self._held.get(lease.id) == lease
