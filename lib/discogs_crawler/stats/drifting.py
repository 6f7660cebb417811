"""What has changed at Discogs: rows of tables, and what somebody should look at."""

from collections.abc import Iterator

from discogs_crawler.cli.formatting import count, date, share
from discogs_crawler.clock import DAY_S
from discogs_crawler.ledger.drift import DAYS
from discogs_crawler.stats.snapshot import KindStats
from discogs_crawler.stats.tables import Table

# Places that a problem names.
NAMED = 5


def differences(kind: KindStats) -> Table:
    """The places in which answers or dumps differ from the schema, the newest first."""
    rows = [
        (
            row.path,
            row.what,
            row.source,
            count(row.records),
            date(row.first_seen),
            date(row.last_seen),
            str(row.example),
        )
        for row in kind.drift
    ]
    heads = ("new or missing at Discogs", "what", "in", "records", "since", "last", "such as")
    return Table("New or missing at Discogs", heads, rows)


def churn(kind: KindStats) -> Table:
    """The fields that changed although the dump had no change."""
    rows = [
        (row.field, count(row.changed), count(row.refetched), share(row.changed / row.refetched))
        for row in kind.churn
        if row.refetched
    ]
    heads = ("changes when fetched again", "records", "of", "share")
    return Table("What changes at every fetch", heads, rows)


def problems(kind: KindStats, now: int) -> Iterator[str]:
    """What is new of late, and which fields should not be stored."""
    new = [row for row in kind.drift if now - row.first_seen < DAYS * DAY_S]
    for what, words in (("unknown", "not known"), ("missing", "missing")):
        # A split and an import of the same dump notice the same.
        paths = [*dict.fromkeys(row.path for row in new if row.what == what)]
        if paths:
            named = ", ".join(paths[:NAMED]) + ", ..." * (len(paths) > NAMED)
            yield f"{kind.kind}: new at Discogs since {date(new[-1].first_seen)}: {words}: {named}"
    for row in kind.churn:
        if row.volatile:
            yield (
                f"{kind.kind}: {row.field} changed in {count(row.changed)} of "
                f"{count(row.refetched)} records fetched again although the dump had no change: "
                f"add it to REMOVE_FIELDS (REMOVE_FIELDS={row.field}), then run "
                "maintain_store.py --reclean"
            )
