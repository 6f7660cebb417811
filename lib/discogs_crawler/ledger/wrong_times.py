"""Times in the ledger that are still to come: a clock was wrong. Those of ids are left out."""

from discogs_crawler import clock
from discogs_crawler.clock import SKEW_S
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.records import KINDS

# Where every script that writes to the ledger leaves the time; but not `dumps.accepted`, which is
# an order first of all.
TIMES = (
    ("runs", "started"),
    ("runs", "ended"),
    ("dumps", "not_before"),
    ("dumps", "not_after"),
    ("dumps", "recorded"),
    ("dumps", "started"),
    ("consumers", "exported"),
    ("consumers_history", "time"),
)


def latest_to_come(ledger: Ledger) -> int:
    """The latest time in the ledger if it is still to come, else 0; found without its records."""
    latest = [f"SELECT max({column}) FROM {table}" for table, column in TIMES]
    latest += [
        f"SELECT max(day) * {clock.DAY_S} FROM {table} WHERE kind = '{kind}'"
        for table in ("outcomes", "ages")
        for kind in KINDS
    ]
    (found,) = ledger.db.execute(
        "SELECT max(found) FROM (SELECT NULL AS found UNION ALL " + " UNION ALL ".join(latest) + ")"
    ).fetchone()
    return found if found and found > clock.now() + SKEW_S else 0
