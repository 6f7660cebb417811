"""From a batch to the store, to Redis, to the ledger, in this order."""

import logging
import sqlite3
from collections import Counter
from pathlib import Path

from discogs_crawler.broker.queue import Queue
from discogs_crawler.errors import CrawlerError
from discogs_crawler.seeding import exchange
from discogs_crawler.store.layouts import Committed, Edit, Store
from discogs_crawler.worker import local_ledger
from discogs_crawler.worker.batch import Batch, Done
from discogs_crawler.worker.lease_keeper import Leases
from discogs_crawler.worker.noticing import Noticing

log = logging.getLogger(__name__)


class Committer:
    """Commits the batches of one worker and reports their results."""

    def __init__(
        self,
        kind: str,
        cleaner: str,
        owner: str,
        store: Store,
        queue: Queue,
        leases: Leases,
        database: Path,
        noticing: Noticing,
    ) -> None:
        """`database`: the ledger; where it is on another machine the results wait in Redis."""
        self._kind, self._store, self._queue = kind, store, queue
        self._leases, self._database, self._noticing = leases, database, noticing
        self._signature = {"Cleaner": cleaner, "Worker": owner}
        self._unread = False

    def commit(self, batch: Batch) -> Done:
        """Store and report all of it. When something fails, everything is still in the batch."""
        leases = batch.leases()
        trailers = {
            "Source": "api",
            "Reason": batch.reasons(),
            "Dump": self._dump(),
            **self._signature,
        }

        def store(changes: list[Edit]) -> Committed:
            return self._store.commit(
                self._kind, changes, lambda: self._leases.renew(leases), trailers
            )

        done = batch.commit(store, self._leases.complete)
        self._leases.forget(done.lost)
        self._noticing.compare(self._store, done)
        self._noticing.report()
        return done

    def tell(self, done: Done, per_minute: float) -> None:
        """One log line per commit, and the results to the ledger if it is on this machine."""
        outcomes = Counter(result.outcome for result in done.results)
        committed = done.committed
        log.info(
            "%s: %s; %d added, %d changed, %d removed%s; %.0f requests/min",
            self._kind,
            ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items())),
            committed.added,
            committed.updated,
            committed.removed,
            f" as {committed.revision[:10]}" if committed.changed else "",
            per_minute,
        )
        if done.lost:
            log.warning(
                "%d ids were no longer ours and are fetched by other workers", len(done.lost)
            )
        self._drain()

    def _drain(self) -> None:
        try:
            with local_ledger.opened(self._database) as ledger:
                if ledger is not None:
                    exchange.drain(ledger, self._queue)
            self._unread = False
        except (CrawlerError, sqlite3.DatabaseError) as error:
            level = logging.INFO if self._unread else logging.WARNING
            log.log(level, "results stay in Redis until the next commit: %s", error)
            self._unread = True

    def _dump(self) -> str:
        """The dump that the ledger's wants come from, if it is known here."""
        try:
            with local_ledger.opened(self._database) as ledger:
                dump = ledger.last_accepted(self._kind) if ledger is not None else None
        except (CrawlerError, sqlite3.DatabaseError):
            return ""
        return dump.file if dump else ""
