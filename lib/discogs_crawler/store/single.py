"""Records as JSON files in one Git repository, and how they are changed.

A batch is committed in three steps: read the tip; ask which ids of the batch are still ours; commit
on that tip. If the branch has moved meanwhile, all three are repeated, so that nobody overwrites a
newer result. With STORE_REMOTE the tip is fetched, and a commit counts once its push is accepted.
"""

import itertools
import logging
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from discogs_crawler import clock
from discogs_crawler.errors import ConfigurationError, Unavailable
from discogs_crawler.records import parse_record_path, record_path, segment_of
from discogs_crawler.store import fast_import, objects, stale_locks
from discogs_crawler.store.fast_import import ACCEPTED, Entry, Pushed, Reply
from discogs_crawler.store.git import Author, Repository
from discogs_crawler.store.objects import EMPTY_TREE, FOLDER
from discogs_crawler.store.remote import CRAWL, HEADS, Remote

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# Seconds in which a batch must be committed while others push, or while the remote is down. Leases
# are renewed meanwhile; then the worker fails, so that its user hears of it.
PATIENCE_S = 600

# The longest waits between two attempts, in seconds: after others moved the branch, and while the
# remote is down.
BACKOFF_S = 2
DOWN_S = 30

# Records that are read at once: 200 of the largest take 30 MB.
READ_AT_ONCE = 200

# The beginning of records from dumps; those from the API have no such key.
FROM_DUMP = b'{\n  "_dump": '

# The branches of `worker.py --branch NAME`.
BRANCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

# Commits on their way to the remote: refs/crawler/pending/EPOCH-RANDOM.
PENDING = "refs/crawler/pending/"


def pending_since(ref: str) -> int:
    """Return when a reference of PENDING was made, in epoch seconds; 0 for other references."""
    epoch = ref.removeprefix(PENDING).partition("-")[0]
    return int(epoch) if epoch.isdigit() else 0


class Edit(NamedTuple):
    """A record to store; with `data` None it is removed."""

    id: int
    data: bytes | None


class Committed(NamedTuple):
    """The result of committing a batch."""

    revision: str
    """the tip that has the batch; "" if the store is empty"""
    ids: frozenset[int]
    """the ids whose records are stored now; the others were no longer ours"""
    changed: frozenset[int]
    """those of them whose records were changed by this commit"""
    added: int
    updated: int
    removed: int
    segments: Mapping[int, str] = MappingProxyType({})
    """by segment the revision of its repository, if segments have their own"""

    def revision_of(self, record_id: int) -> str:
        """Return the revision that has this record of the batch."""
        return self.segments.get(segment_of(record_id), self.revision)


class TreePair(NamedTuple):
    """Two trees to compare, and their path in the store."""

    repository: Repository
    prefix: str
    old: str
    new: str


class SingleStore:
    """Records in one repository: all, or those of one segment, whose path is `prefix`."""

    layout = "single"

    def __init__(
        self,
        repository: Repository,
        branch: str,
        main: str,
        author: Author,
        *,
        remote: Remote | None = None,
        prefix: str = "",
    ) -> None:
        self.repository = repository
        self.prefix = prefix
        self.author = author
        self.patience_s: float = PATIENCE_S
        self._remote = remote
        self._branch = HEADS + branch
        self._tips = (HEADS + branch, HEADS + main)
        self._published: str | None = None

    def path_of(self, kind: str, record_id: int) -> str:
        """Return the path of a record in this repository."""
        return record_path(kind, record_id).removeprefix(self.prefix)

    def tip(self) -> str | None:
        """Return the newest commit of our branch; None if the store is empty.

        With a remote, one that it is known to have. A new branch begins at the main one.
        """
        tips = (self.repository.tip(ref) for ref in self._tips)
        return next((tip for tip in tips if tip), None)

    def refresh(self) -> str | None:
        """Fetch from the remote, if there is one, and return the tip.

        Unavailable if it cannot be reached, ConfigurationError if it has another history.
        """
        if self._remote:
            self._remote.fetch()
        return self.tip()

    def settle(self) -> str | None:
        """Return the revision up to which consumers may read now; None if the store is empty."""
        return self.refresh()

    @property
    def top(self) -> "SingleStore":
        """The store whose revisions consumers read."""
        return self

    def parts(self) -> list["SingleStore"]:
        """Return the stores of single repositories of which this one consists."""
        return [self]

    def part(self, kind: str, segment: int) -> "SingleStore":
        """Return the store of the repository that has a segment."""
        return self

    def repositories(self) -> list[Repository]:
        """Return all repositories of the store."""
        return [self.repository]

    def spans(self, old: str | None, new: str) -> Iterator[TreePair]:
        """Yield the trees to compare for the difference between two revisions of the store."""
        yield TreePair(self.repository, "", old or EMPTY_TREE, new)

    def settled_tip(self, part: "SingleStore") -> str | Pushed:
        """Return the tip of one of `parts`, after whose next commit `pin` pins only that commit."""
        return part.refresh() or Pushed(Reply.MOVED, "the store is empty now")

    def pin(self, tips: Mapping[str, str | None], trailers: Mapping[str, str]) -> str | None:
        """Publish these commits of the parts, by prefix, to readers; return the new tip."""
        return self.tip()

    def commit(
        self,
        kind: str,
        changes: Sequence[Edit],
        still_ours: Callable[[], Collection[int]],
        trailers: Mapping[str, str],
    ) -> Committed:
        """Store the changes that make a difference in one commit, which is then saved to disk.

        `still_ours` extends the leases and returns the ids that may be stored; it is called before
        each attempt. Unavailable if the remote was down, or others always committed first, for
        `patience_s` seconds.
        """
        batch = {change.id: change.data for change in sorted(changes)}
        sent: list[Committed] = []  # pushed without an answer: the remote may have them

        def attempt() -> Committed | Pushed:
            base = self.refresh()
            for done in sent:
                if objects.contains(self.repository.path, base, done.revision):
                    return done
            ours = still_ours()
            left = {i: data for i, data in batch.items() if i in ours}
            entries, done = self._difference(base, kind, left)
            if not entries:
                return done
            counts = {"added": done.added, "changed": done.updated, "removed": done.removed}
            message = fast_import.describe(fast_import.subject(kind, counts), trailers)
            made = self.publish(base, entries, message)
            if not isinstance(made, Pushed):
                return done._replace(revision=made)
            if made.commit:
                sent.append(done._replace(revision=made.commit))
            return made

        return self.retried(attempt, while_down=still_ours)

    def retried(
        self, attempt: Callable[[], _T | Pushed], while_down: Callable[[], object] = lambda: None
    ) -> _T:
        """Repeat `attempt` until its push is accepted, and return what it returns.

        `while_down` is called before each wait for a remote that is down. Unavailable after
        `patience_s` seconds, or if the remote is down when it is time to end.
        """
        deadline, delay_s = time.monotonic() + self.patience_s, 1.0
        sleep: Callable[[float], object]
        while True:
            try:
                result = attempt()
            except Unavailable as error:
                result = Pushed(Reply.UNKNOWN, str(error))
            if not isinstance(result, Pushed):
                return result
            why = result.why
            if result.reply is Reply.UNKNOWN:
                while_down()
                if self._remote is None or self._remote.stop:
                    raise Unavailable(why)
                log.warning("%s; trying again", why)
                sleep, wait_s = self._remote.stop.wait, min(DOWN_S, delay_s)
            else:
                log.info("%s: trying again on the new tip: %s", self.repository.path, why)
                sleep, wait_s = time.sleep, min(BACKOFF_S, 0.02 * delay_s)
                why = f"{self.repository.path}: others always commit first: {why}"
            if result.reply is Reply.LOCKED:
                stale_locks.remove_locks(self.repository)
            if time.monotonic() + wait_s > deadline:
                raise Unavailable(why)
            sleep(random.uniform(0.5, 1) * wait_s)
            delay_s *= 2

    def _difference(
        self, base: str | None, kind: str, batch: Mapping[int, bytes | None]
    ) -> tuple[list[Entry], Committed]:
        """Return the files that a commit on `base` has to change, and its result."""
        paths = {i: self.path_of(kind, i) for i in batch}
        before = fast_import.stored(self.repository, base, paths.values())
        changed: dict[int, str] = {}
        for i, data in batch.items():
            old, new = before.get(paths[i]), None if data is None else objects.blob_id(data)
            if old != new:
                changed[i] = "added" if old is None else "removed" if new is None else "updated"
        entries = [Entry(paths[i], batch[i]) for i in changed]
        counts = Counter(changed.values())
        added, updated, removed = counts["added"], counts["updated"], counts["removed"]
        ids = frozenset(batch)
        return entries, Committed(base or "", ids, frozenset(changed), added, updated, removed)

    def publish(
        self,
        base: str | None,
        entries: Iterable[Entry],
        message: str,
        parents: Iterable[str] = (),
    ) -> str | Pushed:
        """Commit files, records or others, on exactly `base`; return the commit, saved to disk.

        With a remote it is also pushed; until the remote has answered, only a PENDING reference
        names the commit. ConfigurationError if our branch no longer contains our last commit.
        """
        last = self._published
        if last and not self._has_commit(last):
            raise ConfigurationError(
                f"{self.repository.path}: {self._branch} was reset to before commit "
                f"{last[:12]}, which this run made: move it forward again, or go on from here with "
                "maintain_store.py --refetch, which fetches again what it lacks"
            )
        made = self._publish(base, entries, message, parents)
        if not isinstance(made, Pushed):
            self._published = made
        return made

    def _has_commit(self, commit: str) -> bool:
        """Whether our branch contains the commit."""
        tip = self.tip()
        if tip == commit or self.repository.replaced():  # `stale_locks.writing` reports the latter
            return True
        known = objects.look_up(self.repository.path, [f"{commit}^{{commit}}"])[0]
        return known is not None and objects.contains(self.repository.path, tip, commit)

    def _publish(
        self, base: str | None, entries: Iterable[Entry], message: str, parents: Iterable[str]
    ) -> str | Pushed:
        ref = self._branch
        if self._remote:
            ref = f"{PENDING}{int(clock.now())}-{secrets.token_hex(8)}"
        made = fast_import.commit(
            self.repository, ref, base, entries, message, self.author, parents=parents
        )
        if self._remote is None or isinstance(made, Pushed):
            return made
        try:
            pushed = self._remote.push(made, self._branch)
        finally:
            self.repository.call("update-ref", "-d", ref, made)
        if pushed == ACCEPTED:
            return made
        return pushed._replace(commit=made) if pushed.reply is Reply.UNKNOWN else pushed

    def branches(self) -> dict[str, str]:
        """Return the tips of the branches of `worker.py --branch NAME`, by NAME."""
        prefix = HEADS + CRAWL
        tips = {ref.removeprefix(prefix): tip for ref, tip in self.repository.refs(prefix).items()}
        return {name: tip for name, tip in tips.items() if BRANCH.fullmatch(name)}

    def advance(self, commit: str, branch: str = "") -> Pushed:
        """Move our branch, or one of `branches`, to `commit`; MOVED if that is no descendant."""
        ref = f"{HEADS}{CRAWL}{branch}" if branch else self._branch
        if self._remote:
            return self._remote.push(commit, ref)
        before = self.repository.tip(ref)
        if before and not objects.contains(self.repository.path, commit, before):
            return Pushed(Reply.MOVED, f"{ref} is not an ancestor of {commit}")
        with stale_locks.writing(self.repository):
            return fast_import.move(self.repository, ref, before, commit)

    def read(self, kind: str, ids: Iterable[int]) -> dict[int, bytes]:
        """Return the stored records among these, by id."""
        tip = self.tip()
        wanted = sorted(set(ids))
        found: dict[int, bytes] = {}
        for start in range(0, len(wanted) if tip else 0, READ_AT_ONCE):
            block = wanted[start : start + READ_AT_ONCE]
            names = [f"{tip}:{self.path_of(kind, i)}" for i in block]
            blobs = objects.contents(self.repository.path, names)
            found |= {i: data for i, data in zip(block, blobs, strict=True) if data is not None}
        return found

    def ids(self, kind: str) -> Iterator[int]:
        """Yield the ids of all stored records of a kind, ascending."""
        tip = self.tip()
        if tip is None:
            return
        if self.prefix:
            folders = [""] if self.prefix.startswith(f"{kind}/") else []
        else:
            paths = objects.segments(self.repository.path, tip, FOLDER)
            folders = sorted(paths, key=lambda path: int(path.rpartition("/")[2]))
            folders = [path for path in folders if path.startswith(f"{kind}/")]
        for folder in folders:
            yield from self._ids_below(tip, folder)

    def _ids_below(self, tip: str, folder: str) -> Iterator[int]:
        """Yield the ids below a folder, ascending; within a directory Git sorts them as text."""
        where = ["--", folder] if folder else []
        paths = self.repository.lines("ls-tree", "-r", "--name-only", "-z", tip, *where)
        places = (parse_record_path(self.prefix + path.decode(errors="replace")) for path in paths)
        found = (place[1] for place in places if place)
        for _, neighbours in itertools.groupby(found, key=lambda i: i // 100):
            yield from sorted(neighbours)
