"""The tables that the terminal and the page both show: a title, heads, and rows of texts."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from discogs_crawler.cli.formatting import count, date, duration, minute, share
from discogs_crawler.records import SEGMENT_SIZE
from discogs_crawler.stats.snapshot import ClassStats, DayStats, KindStats, SegmentStats, Snapshot


class Table(NamedTuple):
    """A table that can be printed as it is; the first column names the row."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]
    """texts; on the page a cell may be a drawing"""


def queued(kind: KindStats) -> list[ClassStats]:
    """The classes in which there is anything, the most urgent first."""
    return [row for row in kind.classes if row.wanted or row.pending or row.leased]


def queue(kind: KindStats) -> Table:
    """What is queued, and when it is done."""
    heads = ("queue", "wanted", "later", "pending", "leased", "delayed", "done in")
    rows = []
    for row in queued(kind):
        numbers = (row.wanted, row.later, row.pending, row.leased, row.delayed)
        done = "never at this rate" if row.eta_s is None else duration(row.eta_s)
        rows.append((row.reason, *map(count, numbers), "" if row.eta_s == 0 else done))
    return Table("Queue", heads, rows)


def answers(days: Sequence[DayStats]) -> Table:
    """The outcomes of the requests, the newest day first."""
    heads = ("answers", *DayStats._fields[1:])
    return Table("Outcomes a day", heads, [(day[0], *map(count, day[1:])) for day in days[::-1]])


def dead(kind: KindStats) -> Table:
    """What failed in every attempt, and why."""
    rows = [(row.failure, count(row.records), row.example, date(row.next_due)) for row in kind.dead]
    return Table("Dead letters", ("dead because", "ids", "such as", "again"), rows)


def segments(chosen: Iterable[SegmentStats], head: str) -> Table:
    """How much of these segments is stored, and why the rest is not."""
    rows = [
        (
            count(segment.segment * SEGMENT_SIZE),
            share(segment.coverage.share),
            count(segment.coverage.stored_in_dump),
            count(segment.coverage.imported),
            count(segment.coverage.missing),
            count(segment.coverage.gone),
            count(segment.coverage.dead),
        )
        for segment in chosen
    ]
    heads = (head, "share", "stored", "imported", "missing", "gone", "dead")
    return Table("Map of the id space", heads, rows)


def consumers(snapshot: Snapshot) -> Table:
    """The consumers and their places."""
    rows = [
        (
            row.name,
            row.kind,
            (row.revision or "start")[:10],
            minute(row.exported),
            count(row.behind),
            count(row.sequence or None),
        )
        for row in snapshot.consumers
    ]
    heads = ("name", "kind", "revision", "exported", "commits behind", "file")
    return Table("Consumers", heads, rows)


def folders(snapshot: Snapshot) -> list[str]:
    """Where the files of consumers are, one line for each that gets any."""
    return [
        f"{row.name}: file {count(row.sequence)} in {row.folder}"
        for row in snapshot.consumers
        if row.folder
    ]


def runs(snapshot: Snapshot) -> Table:
    """How each script ended last time."""
    rows = [
        (
            run.script,
            run.kind,
            minute(run.started),
            duration(run.ended - run.started) if run.ended else "not ended",
            count(run.exit_code),
        )
        for run in snapshot.runs
    ]
    return Table("Last runs", ("script", "kind", "started", "took", "exit"), rows)


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
