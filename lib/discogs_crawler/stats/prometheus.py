"""A snapshot in Prometheus's text format, for node_exporter's textfile collector."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from discogs_crawler.ledger.drift import Drift
from discogs_crawler.stats.snapshot import Coverage, Kind, Snapshot

_PREFIX = "discogs_crawler_"


class Family(NamedTuple):
    """A metric: its name, what it means, and its samples as labels and values."""

    name: str
    help: str
    samples: Sequence[tuple[dict[str, str], float | None]]


def render(snapshot: Snapshot) -> str:
    """The text; what is unknown is left out. All metrics are gauges, in base units."""
    lines = []
    for family in _families(snapshot):
        known = [(labels, value) for labels, value in family.samples if value is not None]
        if not known:
            continue
        name = _PREFIX + family.name
        lines += [f"# HELP {name} {family.help}", f"# TYPE {name} gauge"]
        lines += [f"{name}{_labels(labels)} {value!r}" for labels, value in known]
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _families(snapshot: Snapshot) -> Iterator[Family]:
    yield Family("snapshot_timestamp_seconds", "When this was taken.", [({}, snapshot.taken)])
    yield Family("redis_up", "Whether Redis answered.", [({}, int(not snapshot.redis))])
    yield Family("problems", "What somebody should look at.", [({}, len(snapshot.problems))])
    yield Family("ledger_bytes", "Size of the ledger.", [({}, snapshot.database_bytes)])
    yield from _quota(snapshot)
    yield from _coverage(snapshot.kinds)
    yield from _queue(snapshot.kinds)
    yield from _history(snapshot.kinds)
    yield from _drift(snapshot.kinds)
    yield from _others(snapshot)


def _quota(snapshot: Snapshot) -> Iterator[Family]:
    quota = snapshot.quota
    labels = {"identity": quota.identity}
    yield Family("quota_limit", "Requests that a window may hold.", [(labels, quota.limit)])
    yield Family("quota_used", "Requests that count in this window.", [(labels, quota.used)])
    yield Family("quota_share", "Share of the quota that answers took.", [(labels, quota.share)])
    yield Family("pause_seconds", "Until the next request may be sent.", [(labels, quota.pause_s)])


def _coverage(kinds: list[Kind]) -> Iterator[Family]:
    yield Family(
        "records",
        "Records and ids by where they stand.",
        [
            ({"kind": kind.kind, "state": name}, getattr(kind.coverage, name))
            for kind in kinds
            for name in Coverage._fields
        ],
    )
    yield Family(
        "age_seconds",
        "Age of the stored records, to the day.",
        [
            ({"kind": kind.kind, "quantile": quantile}, age)
            for kind in kinds
            for quantile, age in (("0.5", kind.ages.median_s), ("0.9", kind.ages.p90_s))
        ],
    )


def _queue(kinds: list[Kind]) -> Iterator[Family]:
    classes = [
        ({"kind": kind.kind, "reason": row.reason}, row) for kind in kinds for row in kind.classes
    ]
    for name, meaning in (
        ("wanted", "Ids wanted according to the ledger."),
        ("later", "Wanted ids that are not due yet."),
        ("pending", "Ids waiting in Redis."),
        ("leased", "Ids that workers have in hand."),
        ("delayed", "Ids waiting for another attempt."),
    ):
        rows = [(labels, getattr(row, name)) for labels, row in classes]
        yield Family(f"queue_{name}", meaning, rows)
    estimates = [(labels, row.eta_s) for labels, row in classes]
    yield Family("eta_seconds", "Until all that is due is fetched.", estimates)
    yield Family(
        "results_unread",
        "Results in Redis that the ledger has not read yet.",
        [({"kind": kind.kind}, kind.unread) for kind in kinds],
    )
    yield Family(
        "answers_per_day",
        "Answers in a day, measured since yesterday began.",
        [({"kind": kind.kind}, 0 if kind.rate.assumed else kind.rate.per_day) for kind in kinds],
    )


def _history(kinds: list[Kind]) -> Iterator[Family]:
    yield Family(
        "answers_today",
        "Answers to the requests of the last day shown, by outcome.",
        [
            ({"kind": kind.kind, "outcome": outcome}, number)
            for kind in kinds
            if kind.outcomes
            for outcome, number in zip(
                kind.outcomes[-1]._fields[1:], kind.outcomes[-1][1:], strict=True
            )
        ],
    )
    yield Family(
        "dead_letters",
        "Ids that failed in every attempt, by cause.",
        [
            ({"kind": kind.kind, "failure": cause.failure}, cause.records)
            for kind in kinds
            for cause in kind.dead
        ],
    )
    newest = [({"kind": kind.kind}, kind.dumps[0]) for kind in kinds if kind.dumps]
    yield Family(
        "dump_timestamp_seconds",
        "When the newest dump was taken.",
        [(labels, dump.taken) for labels, dump in newest],
    )
    yield Family(
        "dump_whole",
        "Whether the newest dump is whole.",
        [(labels, int(dump.verdict == "whole")) for labels, dump in newest],
    )


def _drift(kinds: list[Kind]) -> Iterator[Family]:
    yield Family(
        "drift_records",
        "Records that differ from the schema, about, by place.",
        [
            ({"kind": kind.kind, **dict(zip(Drift._fields[:3], row[:3], strict=True))}, row.records)
            for kind in kinds
            for row in kind.drift
        ],
    )
    yield Family(
        "churn_share",
        "Share of the records fetched again in which a field differed without need.",
        [
            ({"kind": kind.kind, "field": row.field}, row.changed / row.refetched)
            for kind in kinds
            for row in kind.churn
            if row.refetched
        ],
    )


def _others(snapshot: Snapshot) -> Iterator[Family]:
    consumers = [({"consumer": row.name, "kind": row.kind}, row) for row in snapshot.consumers]
    yield Family(
        "consumer_commits_behind",
        "Commits that the consumer has not got.",
        [(labels, row.behind) for labels, row in consumers],
    )
    yield Family(
        "consumer_exported_timestamp_seconds",
        "When the consumer last got something.",
        [(labels, row.exported) for labels, row in consumers],
    )
    yield Family(
        "run_exit_code",
        "How the last run of a script ended.",
        [({"script": run.script, "kind": run.kind}, run.exit_code) for run in snapshot.runs],
    )
    yield Family(
        "run_started_timestamp_seconds",
        "When the last run of a script began.",
        [({"script": run.script, "kind": run.kind}, run.started) for run in snapshot.runs],
    )
