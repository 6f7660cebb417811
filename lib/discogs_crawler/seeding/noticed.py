"""What workers noticed, from Redis into the ledger."""

import logging

from discogs_crawler.broker.queue import Queue
from discogs_crawler.errors import CrawlerError
from discogs_crawler.ledger import drift
from discogs_crawler.ledger.database import Ledger

log = logging.getLogger(__name__)


def read(ledger: Ledger, queue: Queue) -> None:
    """Read it, for the holder of the handover; nothing stops if it cannot be read."""
    try:
        observations = queue.observations.take()
        if observations:
            with ledger.transaction() as connection:
                drift.record(connection, queue.kind, "api", observations)
            # A reader that is killed here makes them count twice.
            queue.observations.forget()
    except CrawlerError as error:
        log.info("what workers noticed stays in Redis: %s", error)
