"""A snapshot in Prometheus's text format, for node_exporter's textfile collector."""

from collections.abc import Iterator
from typing import NamedTuple

from discogs_crawler.ledger.drift import Drift
from discogs_crawler.stats.snapshot import KindStats, QuotaStats, Snapshot

_PREFIX = "discogs_crawler_"


class Sample(NamedTuple):
    """A value of a metric. All samples of one name have one meaning, which is their help."""

    name: str
    help: str
    value: float | None
    labels: dict[str, str]


def render(snapshot: Snapshot) -> str:
    """The text; what is unknown is left out. All metrics are gauges, in base units."""
    families: dict[str, list[str]] = {}
    for sample in _samples(snapshot):
        if sample.value is not None:
            name = _PREFIX + sample.name
            head = [f"# HELP {name} {sample.help}", f"# TYPE {name} gauge"]
            line = f"{name}{_labels(sample.labels)} {sample.value!r}"
            families.setdefault(name, head).append(line)
    return "\n".join(line for lines in families.values() for line in lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _samples(snapshot: Snapshot) -> Iterator[Sample]:
    yield Sample("snapshot_timestamp_seconds", "When this was taken.", snapshot.taken, {})
    yield Sample("redis_up", "Whether Redis answered.", int(not snapshot.redis), {})
    yield Sample("problems", "What somebody should look at.", len(snapshot.problems), {})
    yield Sample("ledger_bytes", "Size of the ledger.", snapshot.database_bytes, {})
    yield from _quota(snapshot.quota)
    for kind in snapshot.kinds:
        yield from _coverage(kind)
        yield from _queue(kind)
        yield from _history(kind)
        yield from _drift(kind)
    yield from _others(snapshot)


def _quota(quota: QuotaStats) -> Iterator[Sample]:
    labels = {"identity": quota.identity}
    yield Sample("quota_limit", "Requests that a window may hold.", quota.limit, labels)
    yield Sample("quota_used", "Requests that count in this window.", quota.used, labels)
    yield Sample("quota_share", "Share of the quota that answers took.", quota.share, labels)
    yield Sample("pause_seconds", "Until the next request may be sent.", quota.pause_s, labels)


def _coverage(kind: KindStats) -> Iterator[Sample]:
    for state, records in kind.coverage._asdict().items():
        labels = {"kind": kind.kind, "state": state}
        yield Sample("records", "Records and ids by where they stand.", records, labels)
    for quantile, age in (("0.5", kind.ages.median_s), ("0.9", kind.ages.p90_s)):
        labels = {"kind": kind.kind, "quantile": quantile}
        yield Sample("age_seconds", "Age of the stored records, to the day.", age, labels)


def _queue(kind: KindStats) -> Iterator[Sample]:
    for row in kind.classes:
        of = {"kind": kind.kind, "reason": row.reason}
        yield Sample("queue_wanted", "Ids wanted according to the ledger.", row.wanted, of)
        yield Sample("queue_later", "Wanted ids that are not due yet.", row.later, of)
        yield Sample("queue_pending", "Ids waiting in Redis.", row.pending, of)
        yield Sample("queue_leased", "Ids that workers have in hand.", row.leased, of)
        yield Sample("queue_delayed", "Ids waiting for another attempt.", row.delayed, of)
        yield Sample("eta_seconds", "Until all that is due is fetched.", row.eta_s, of)
    of = {"kind": kind.kind}
    unread = "Results in Redis that the ledger has not read yet."
    yield Sample("results_unread", unread, kind.unread, of)
    measured = 0 if kind.rate.assumed else kind.rate.per_day
    yield Sample(
        "answers_per_day", "Answers in a day, measured since yesterday began.", measured, of
    )


def _history(kind: KindStats) -> Iterator[Sample]:
    of = {"kind": kind.kind}
    if kind.outcomes:
        today = "Answers to the requests of the last day shown, by outcome."
        for outcome, number in list(kind.outcomes[-1]._asdict().items())[1:]:
            yield Sample("answers_today", today, number, {**of, "outcome": outcome})
    for cause in kind.dead:
        labels = {**of, "failure": cause.failure}
        failed = "Ids that failed in every attempt, by cause."
        yield Sample("dead_letters", failed, cause.records, labels)
    if kind.dumps:
        newest = kind.dumps[0]
        yield Sample("dump_timestamp_seconds", "When the newest dump was taken.", newest.taken, of)
        whole = int(newest.verdict == "whole")
        yield Sample("dump_whole", "Whether the newest dump is whole.", whole, of)


def _drift(kind: KindStats) -> Iterator[Sample]:
    for place in kind.drift:
        of = {"kind": kind.kind, **dict(zip(Drift._fields[:3], place[:3], strict=True))}
        differ = "Records that differ from the schema, about, by place."
        yield Sample("drift_records", differ, place.records, of)
    for row in kind.churn:
        if row.refetched:
            of = {"kind": kind.kind, "field": row.field}
            churn = "Share of the records fetched again in which a field differed without need."
            yield Sample("churn_share", churn, row.changed / row.refetched, of)


def _others(snapshot: Snapshot) -> Iterator[Sample]:
    for disk in snapshot.disks:
        of = {"path": disk.path, "holds": disk.holds}
        yield Sample("disk_free_bytes", "What we may still write.", disk.free_bytes, of)
        yield Sample("disk_size_bytes", "Size of the disk.", disk.size_bytes, of)
    for row in snapshot.consumers:
        of = {"consumer": row.name, "kind": row.kind}
        behind = "Commits that the consumer has not got."
        yield Sample("consumer_commits_behind", behind, row.behind, of)
        exported = "When the consumer last got something."
        yield Sample("consumer_exported_timestamp_seconds", exported, row.exported, of)
        if row.folder:
            number = "Number of the last file of export_changes.py --into."
            where = {**of, "folder": row.folder}
            yield Sample("consumer_file_sequence", number, row.sequence, where)
    for run in snapshot.runs:
        of = {"script": run.script, "kind": run.kind}
        ended = "How the last run of a script ended."
        yield Sample("run_exit_code", ended, run.exit_code, of)
        began = "When the last run of a script began."
        yield Sample("run_started_timestamp_seconds", began, run.started, of)
