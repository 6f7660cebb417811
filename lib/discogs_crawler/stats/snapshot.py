"""What `stats.py` sees, as data: the one shape behind the terminal, JSON, HTML and Prometheus.

Times are UTC epoch seconds, durations seconds, shares numbers from 0 to 1; None means unknown.
"""

from typing import Any, NamedTuple

from discogs_crawler.cli import formatting
from discogs_crawler.cli.disk_space import Disk
from discogs_crawler.ledger.drift import Churn, Drift


class Coverage(NamedTuple):
    """How much of a kind, or of a segment of a million ids, is in the store."""

    in_dump: int
    """records of the latest dump"""
    stored: int
    """records in the store from the API, also those newer than the dump"""
    stored_in_dump: int
    """records of the latest dump that are in the store from the API"""
    imported: int
    """records in the store that a dump brought and the API not yet"""
    missing: int
    """records of the latest dump that the store has not at all and that the API has not denied"""
    gone: int
    """ids that the API says do not exist (any more) and that are not stored"""
    dead: int
    """ids that no attempt could fetch and that are not stored"""
    wanted: int
    """ids to be fetched, now or later"""

    @property
    def share(self) -> float | None:
        """Share of the latest dump that is stored from the API; None without a dump."""
        return self.stored_in_dump / self.in_dump if self.in_dump else None

    @property
    def share_with_imported(self) -> float | None:
        """The same with what was imported from a dump."""
        both = self.stored_in_dump + self.imported
        return min(1.0, both / self.in_dump) if self.in_dump else None


class SegmentStats(NamedTuple):
    """A million ids of the id space."""

    segment: int
    """number of the segment: its ids begin at segment * 1,000,000"""
    coverage: Coverage
    """as of the kind"""


class Ages(NamedTuple):
    """How long ago the stored records were last seen alive at the API."""

    median_s: int | None
    """half of the records are younger, to the day"""
    p90_s: int | None
    """nine of ten records are younger, to the day"""
    days: dict[int, int]
    """age in days -> records"""


class ClassStats(NamedTuple):
    """Ids that are wanted for the same reason."""

    reason: str
    """one of broker.messages.CLASSES"""
    wanted: int
    """ids wanted according to the ledger"""
    later: int
    """of these, not due yet"""
    pending: int | None
    """ids waiting in Redis; None when Redis is not there"""
    leased: int | None
    """ids that workers have in hand"""
    delayed: int | None
    """ids waiting in Redis for another attempt"""
    arriving: float
    """ids that join the class in a day, on average"""
    eta_s: int | None
    """until all that is due is fetched, higher classes first; None: not at this rate"""


class AnswerRate(NamedTuple):
    """The rate of answers about ids of a kind."""

    answers: int
    """answers since `since`"""
    since: int
    """begin of yesterday, or of the crawl if that is later"""
    per_day: float
    """answers in a day, measured, or the whole quota if there was none"""
    assumed: bool
    """nothing was measured, so the estimates assume the whole quota"""


class DayStats(NamedTuple):
    """The outcomes of the requests of one day."""

    day: str
    """date, UTC"""
    changed: int
    """new or changed records"""
    unchanged: int
    """records as they were"""
    gone: int
    """ids that do not exist"""
    removed: int
    """records removed from the store after a second denial"""
    merged: int
    """ids merged into another"""
    dead: int
    """ids that no attempt could fetch"""

    @property
    def total(self) -> int:
        """All answers of the day."""
        return sum(self[1:])


class FailureStats(NamedTuple):
    """Ids that failed in every attempt for the same cause."""

    failure: str
    """the cause"""
    records: int
    """number of such ids"""
    example: int
    """the lowest such id"""
    next_due: int | None
    """when the first of them is tried again"""


class DumpStats(NamedTuple):
    """A dump that was split."""

    file: str
    """its name"""
    taken: int
    """when the snapshot was finished, at the latest"""
    records: int
    """records in it"""
    verdict: str
    """`whole`, or what is wrong with it"""
    damaged: int
    """damaged records in it"""
    accepted: int | None
    """when the ledger took its hashes; None: not yet"""
    added: int | None
    """records that the dump before did not have"""
    changed: int | None
    """records with another content than in the dump before"""
    retired: int | None
    """records of the dump before that it does not have"""


class WorkerStats(NamedTuple):
    """Somebody who has leases."""

    owner: str
    """who: host and process"""
    leased: int
    """ids in hand"""
    lapses: int
    """when the first of its leases lapses"""


class KindStats(NamedTuple):
    """All about one kind of record."""

    kind: str
    """releases, artists, labels or masters"""
    coverage: Coverage
    """how much of it is stored"""
    ages: Ages
    """how old that is"""
    classes: list[ClassStats]
    """what is queued and why, the most urgent first"""
    workers: list[WorkerStats]
    """who is fetching"""
    unread: int | None
    """results in Redis that the ledger has not read yet"""
    rate: AnswerRate
    """the rate of answers"""
    outcomes: list[DayStats]
    """outcomes by day, oldest first, without gaps"""
    dead: list[FailureStats]
    """what failed and why, most frequent first"""
    dumps: list[DumpStats]
    """newest first"""
    segments: list[SegmentStats]
    """coverage by segment, ascending"""
    drift: list[Drift]
    """where answers or dumps differ from the schema, the newest first; see `ledger/drift.py`"""
    churn: list[Churn]
    """fields that differed in records fetched again; see `ledger/drift.py`"""


class QuotaStats(NamedTuple):
    """The API's quota, shared by all who use the same identity."""

    identity: str
    """RATE_IDENTITY"""
    limit: int
    """requests that a window may hold; 0: not known yet"""
    window_s: float
    """length of the window"""
    used: int | None
    """requests that count now; None when Redis is not there"""
    foreign: int | None
    """requests of somebody else on the same address that count now"""
    pause_s: float | None
    """until the next request may be sent; 0: no pause"""
    per_day: int
    """requests that the limit allows in a day"""
    measured_per_day: float
    """answers in a day, all kinds, over the time that `rate` of the kinds covers"""

    @property
    def share(self) -> float:
        """Share of the quota that the measured answers took."""
        return self.measured_per_day / self.per_day


class ConsumerStats(NamedTuple):
    """Somebody who exports from the store."""

    name: str
    """as in export_changes.py --consumer"""
    repository: str
    """where it reads"""
    kind: str
    """what it gets"""
    revision: str | None
    """the commit that it has everything up to; None: nothing yet"""
    exported: int | None
    """when it got there"""
    records: int
    """changes that it has got so far"""
    sequence: int
    """number of its last file (--into); 0: it gets none"""
    folder: str | None
    """where its files are (--into)"""
    behind: int | None
    """commits that it has not got yet; None when the repository is not on this machine"""


class RunStats(NamedTuple):
    """The last run of a script for a kind."""

    script: str
    """its name"""
    kind: str
    """for which kind, or all"""
    started: int
    """when"""
    ended: int | None
    """None: it runs, or was killed"""
    exit_code: int | None
    """as in the README"""
    counts: dict[str, Any]
    """what it did"""


class Snapshot(NamedTuple):
    """Everything at one instant."""

    taken: int
    """when"""
    version: str
    """of crawler_for_discogs"""
    database: str
    """the ledger"""
    database_bytes: int
    """its size, that of its write-ahead log included"""
    redis: str
    """empty, or why nothing is known about the queue"""
    problems: list[str]
    """what somebody should look at, a line each"""
    quota: QuotaStats
    """how much of the API's quota is used"""
    kinds: list[KindStats]
    """the kinds about which anything is known"""
    consumers: list[ConsumerStats]
    """who has got how far"""
    runs: list[RunStats]
    """how the scripts ended last time, newest first"""
    disks: list[Disk]
    """where store, ledger, dumps and state are"""


def made_printable(value: Any) -> Any:
    """A snapshot, or a part of it, with every text in it as it can be shown anywhere.

    HTML and UTF-8 cannot express everything that the ledger and Redis may hold.
    """
    if isinstance(value, str):
        return formatting.printable(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(made_printable, value))
    if isinstance(value, list | tuple):
        return type(value)(map(made_printable, value))
    if isinstance(value, dict):
        return {name: made_printable(item) for name, item in value.items()}
    return value


def plain(value: Any) -> Any:
    """A snapshot, or a part of it, as what JSON knows: fields and properties become keys."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        computed = [name for name, kind in vars(type(value)).items() if isinstance(kind, property)]
        return {name: plain(getattr(value, name)) for name in (*type(value)._fields, *computed)}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    return value
