"""One export: what a consumer does not have yet, written out whole before its place moves.

It ends at the tip as it was when the export began. If it is killed, cut off or refused at any
point, the place does not move, and the next export repeats all of it.
"""

import contextlib
import logging
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from discogs_crawler import locks
from discogs_crawler.cli import progress
from discogs_crawler.config import Settings
from discogs_crawler.errors import BadData, ConfigurationError, NothingYet, UsageError
from discogs_crawler.export import formats, mirror, revisions
from discogs_crawler.export.delivery import Write
from discogs_crawler.export.revisions import LeftOut, StoreSource
from discogs_crawler.ledger import consumers
from discogs_crawler.ledger.consumers import Consumer
from discogs_crawler.ledger_here import places_are_here
from discogs_crawler.records import KINDS
from discogs_crawler.store import conversion, git_process, objects
from discogs_crawler.store.git_process import GitFailed
from discogs_crawler.store.objects import EMPTY_TREE

log = logging.getLogger(__name__)

ALL = "all"
DEFAULT_KIND = "releases"

# Branches that an error names.
MOST_NAMED = 5


class Form(NamedTuple):
    """The form of an export: one of `formats.FORMATS`, lines ended by NUL, what is left out."""

    format: str = "names"
    nul: bool = False
    skip_technical: bool = False
    previous: bool = False
    """with the record before each change"""


class Plan(NamedTuple):
    """An export that can begin: its consumer, the repository, and the two revisions."""

    consumer: Consumer
    source: StoreSource
    old: str
    new: str

    def variables(self) -> dict[str, str]:
        """The environment variables for the command of --exec."""
        return {
            "EXPORT_CONSUMER": self.consumer.name,
            "EXPORT_KIND": self.consumer.kind,
            "EXPORT_REPOSITORY": str(self.source.folder),
            "EXPORT_FROM": self.old,
            "EXPORT_TO": self.new,
        }


@contextlib.contextmanager
def reading(repository: str | None, settings: Settings) -> Iterator[None]:
    """Read the crawler's own store, if it is that, while nobody converts it.

    BadData if Git fails for an unknown reason: the repository is damaged.
    """
    is_own = repository is None and settings.store.is_dir()
    try:
        with conversion.excluded(settings.store) if is_own else contextlib.nullcontext():
            yield
    except GitFailed as error:
        raise BadData(str(error)) from error


def find_source(repository: str | None, settings: Settings) -> StoreSource:
    """The repository to read: the crawler's own, or the folder or URL that was named."""
    if repository is None:
        return _own_store(settings)
    mirrors = settings.state_dir / "mirrors"
    if mirror.is_url(repository):
        return mirror.of_url(repository, mirrors)
    return mirror.of_folder(Path(repository), mirrors)


def _own_store(settings: Settings) -> StoreSource:
    """The crawler's repository, up to the commit that consumers may read."""
    folder = settings.store / "discogs.git"
    if not folder.is_dir():
        _refuse_lost_store(settings)
        raise NothingYet(
            f"STORE {settings.store}: nothing is stored there yet; import_dump.py or worker.py"
            " makes it, or name another with --repository"
        )
    if not places_are_here(settings.database):
        _refuse_lost_ledger(settings)
    branch = f"refs/heads/{settings.store_branch}"
    head = folder / "HEAD"
    is_usual = head.is_file() and head.read_bytes().rstrip() == f"ref: {branch}".encode()
    if settings.store_remote is None and settings.store_layout == "single" and is_usual:
        return StoreSource(folder, branch, str(folder))
    # Only pushed commits count, or the pins must be advanced first: the store knows how, but takes
    # longer to load than most exports to run.
    from discogs_crawler.store.layouts import open_store

    store = open_store(settings, create=False, whole=True)
    was_empty, tip = store.tip() is None, store.settle() or ""
    if was_empty and not places_are_here(settings.database):
        _refuse_lost_ledger(settings)  # now that its remote was asked
    return StoreSource(store.repository.path, tip, str(store.repository.path))


def _refuse_lost_store(settings: Settings) -> None:
    """ConfigurationError if the ledger knows of records: a disk may not be mounted."""
    from discogs_crawler.ledger import database
    from discogs_crawler.store import layouts

    if settings.database.exists():
        with database.open(settings.database) as ledger:
            layouts.refuse_to_begin_anew(settings, ledger.stored())


def _refuse_lost_ledger(settings: Settings) -> None:
    """ConfigurationError if the places of consumers were in a ledger that is not there."""
    from discogs_crawler.store import layouts

    store = layouts.open_store(settings, create=False)
    try:
        layouts.refuse_lost_ledger(store, settings)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{error}; where there is to be no ledger, export with --repository"
        ) from error


def find_database(repository: str | None, source: StoreSource, settings: Settings) -> Path:
    """The file of consumers' places: the ledger, or one beside the clone that is read."""
    if repository is None:
        return settings.database
    if mirror.is_url(repository):
        return source.folder.with_suffix(consumers.BESIDE_A_CLONE)
    folder = Path(source.name)
    return folder.with_name(folder.name + consumers.BESIDE_A_CLONE)


def alone(database: Path, name: str) -> contextlib.AbstractContextManager[int]:
    """Be the only export to that consumer during the block; TryLater if another is running.

    The block gets the open lock, which a command that consumes inherits: if we are killed, it still
    runs, and the next export must not overtake it.
    """
    return locks.exclusive(lock_of(database, name), f"an export to {name}")


def lock_of(database: Path, name: str) -> Path:
    """The file that an export to that consumer locks."""
    return database.with_name(f"{database.name}.{name}.lock")


def enrol(
    db: sqlite3.Connection,
    source: StoreSource,
    name: str,
    kind: str | None,
    start: str | None,
    *,
    keep: bool,
) -> Consumer:
    """The consumer `name`; a new one begins at `start`, which is recorded first (`keep`).

    So `HEAD~3` and `now` mean the same when an export that was cut short is repeated. UsageError if
    the consumer is known and gets another kind or began elsewhere.
    """
    consumer = consumers.find(db, name)
    if consumer is None:
        revision = resolve(source, start or "start")
        consumer = Consumer(name, source.name, kind or DEFAULT_KIND, revision)
        if keep:
            consumers.add(db, consumer)
        return consumer
    if kind not in (None, consumer.kind):
        raise UsageError(
            f"--kind {kind}: consumer {name} gets {consumer.kind}, and would miss changes;"
            " use another name for another kind"
        )
    # `now` is another revision each time: in a crontab it is meant for the first run.
    if start not in (None, "now"):
        _check_start(db, source, consumer, start)
    return consumer._replace(repository=source.name)


def _check_start(
    db: sqlite3.Connection, source: StoreSource, consumer: Consumer, start: str
) -> None:
    """UsageError if a known consumer did not begin at `start`."""
    began = consumers.beginning(db, consumer.name)
    if began is not None and len(start) >= 7 and began.startswith(start):
        return  # even if the store was converted and no longer has that revision
    if resolve(source, start) != began:
        raise UsageError(
            f"--from {start[:80]}: consumer {consumer.name} is not new, it is at"
            f" {(consumer.revision or 'the start')[:12]}: leave --from off to go on there,"
            f" or move it with --reset {start[:80]}"
        )


def resolve(source: StoreSource, revision: str) -> str | None:
    """The commit that `start` (None), `now` or a revision means in that repository."""
    if revision == "start":
        return None
    name = source.tip if revision == "now" else revision
    found = objects.look_up(source.folder, [f"{name}^{{commit}}"])[0]
    if found is None and revision != "now":
        raise UsageError(f"{source.name}: there is no revision {revision[:80]!r}")
    if found is None:
        _refuse_wrong_branch(source)
    return found


def plan(consumer: Consumer, source: StoreSource, limit: int | None) -> Plan | None:
    """What is to be exported now; None if the consumer has everything.

    BadData if its revision is not in the repository (any more). Without a tip: NothingYet if there
    never was one, else BadData or ConfigurationError.
    """
    begin = consumer.revision or EMPTY_TREE
    tip, known = objects.look_up(source.folder, [f"{source.tip}^{{commit}}", f"{begin}^{{tree}}"])
    if tip is None:
        _refuse_lost_tip(consumer, source)
        _refuse_wrong_branch(source)
        raise NothingYet(f"{source.name}: nothing is stored there yet")
    if tip == begin:
        return None
    if consumer.revision is not None and known is None:
        raise BadData(
            f"{source.name}: there is no revision {begin}, where consumer {consumer.name} is;"
            " it is an older copy, history was rewritten or pruned, or it is another repository."
            " Restore the newer copy, or begin again with"
            f" --consumer {consumer.name} --reset start (or now, or a revision)"
        )
    if consumer.revision is not None and not objects.contains(source.folder, tip, begin):
        log.warning(
            "history was rewritten: %s is not below the tip; exporting what differs", begin[:12]
        )
        limit = None  # commits from another beginning would take back what the consumer has
    new = revisions.nth_commit(source.folder, begin, tip, limit) if limit else tip
    return Plan(consumer, source, begin, new)


def _refuse_lost_tip(consumer: Consumer, source: StoreSource) -> None:
    """BadData if the consumer has been given something of a repository that has no tip."""
    if consumer.revision is not None:
        raise BadData(
            f"{source.name}: its branch is gone, or it is another repository; consumer"
            f" {consumer.name} is at {consumer.revision}. Bring the branch back, from a backup or"
            " with what git fsck --lost-found names, or begin again with"
            f" --consumer {consumer.name} --reset start"
        )


def _refuse_wrong_branch(source: StoreSource) -> None:
    """ConfigurationError if a repository without a tip has other branches than those of workers."""
    from discogs_crawler.store.remote import CRAWL  # takes long to load, see above

    command = ("for-each-ref", "--format=%(refname)", "refs/heads", "refs/remotes")
    listing = git_process.run(source.folder, *command).decode(errors="replace")
    found = [name for name in listing.splitlines() if CRAWL not in name]
    if not source.foreign:  # STORE_BRANCH is called as it is in STORE_REMOTE
        found = sorted({re.sub("^refs/(heads|remotes/origin)/", "", name) for name in found})
    if found:
        what = "HEAD names" if source.foreign else "STORE_BRANCH names"
        way = "git symbolic-ref HEAD NAME" if source.foreign else "STORE_BRANCH=NAME"
        raise ConfigurationError(
            f"{source.name}: {what} a branch that is not there; there are"
            f" {', '.join(found[:MOST_NAMED])}; choose the one that has the records: {way}"
        )


def write(plan: Plan, form: Form, write: Write) -> int:
    """Write the plan's changes in that form; the number of changes written."""
    source = plan.source
    kinds = KINDS if plan.consumer.kind == ALL else (plan.consumer.kind,)
    end = b"\0" if form.nul else b"\n"
    total, left_out = 0, LeftOut()
    stretches = revisions.stretches(
        source.folder, plan.old, plan.new, skip_technical=form.skip_technical
    )
    with progress.count("export", "changes") as advance:
        for stretch in stretches:
            for subtree in revisions.subtrees(source.folder, stretch, kinds, left_out):
                for block, count in formats.blocks(
                    form.format,
                    subtree,
                    stretch.new,
                    left_out,
                    end=end,
                    foreign=source.foreign,
                    previous=form.previous,
                ):
                    write(block)
                    advance(count)
                    total += count
    if left_out.number:
        log.warning(
            "%s: files not exported because they are not records: %d; the first: %s",
            *(source.name, left_out.number, left_out.first),
        )
    return total
