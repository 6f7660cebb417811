"""The store: every record as a JSON file in Git, and the only way to change one.

One commit: read the tip; ask which ids of the batch are still ours; commit from that tip. If the
branch has moved meanwhile all three again, so that nobody commits over a newer result. With
STORE_REMOTE the tip is fetched, and the commit counts when its push was accepted.
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
from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.errors import ConfigurationError, Unavailable
from discogs_crawler.records import parse_record_path, record_path, segment_of
from discogs_crawler.store import fast_import, objects, stale_locks
from discogs_crawler.store.fast_import import ACCEPTED, Entry, Pushed, Reply
from discogs_crawler.store.git import Author, Repository
from discogs_crawler.store.objects import EMPTY_TREE, FOLDER
from discogs_crawler.store.remote import CRAWL, HEADS, Remote

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# How long a batch may take to get in while others push, or while the remote is down. Leases are
# renewed meanwhile; whoever runs the worker hears of it after this.
PATIENCE_S = 600

# The longest waits between two attempts, in seconds: others moved the branch; the remote is down.
BACKOFF_S = 2
DOWN_S = 30

# Records read at once: 200 of the largest are 30 MB.
READ_AT_ONCE = 200

# How a record begins that came from a dump; one from the API has no such key.
FROM_DUMP = b'{\n  "_dump": '

# The branches of `worker.py --branch NAME`.
BRANCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

# Commits on their way to the remote: refs/crawler/EPOCH-RANDOM.
PENDING = "refs/crawler/pending/"


def pending_since(ref: str) -> int:
    """The time (epoch seconds) from which that reference of PENDING is; 0 for another."""
    epoch = ref.removeprefix(PENDING).partition("-")[0]
    return int(epoch) if epoch.isdigit() else 0


class Edit(NamedTuple):
    """A record to store, or with `data` None to remove."""

    id: int
    data: bytes | None


class Committed(NamedTuple):
    """What became of a batch."""

    revision: str
    """the tip that holds the batch, "" if the store is empty"""
    ids: frozenset[int]
    """those committed, or stored like that already; the others were no longer ours"""
    changed: frozenset[int]
    """those that made a difference"""
    added: int
    updated: int
    removed: int
    segments: Mapping[int, str] = MappingProxyType({})
    """where each segment has a repository of its own: the revisions there"""

    def revision_of(self, record_id: int) -> str:
        """The revision that holds that record of the batch."""
        return self.segments.get(segment_of(record_id), self.revision)


class TreePair(NamedTuple):
    """Two trees to compare, and the path at which they lie in the store."""

    repository: Repository
    prefix: str
    old: str
    new: str


def _subject(kind: str, done: Committed) -> str:
    counts = {"added": done.added, "changed": done.updated, "removed": done.removed}
    return f"{kind}: " + ", ".join(f"{count} {word}" for word, count in counts.items() if count)


class SingleStore:
    """Records in one repository: all of them, or with `prefix` those of `releases/13/`."""

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
        stop: Stop | None = None,
    ) -> None:
        self.repository = repository
        self.prefix = prefix
        self.author = author
        self.patience_s: float = PATIENCE_S
        self._remote = remote
        self._stop = Stop() if stop is None else stop
        self._branch = HEADS + branch
        self._tips = (HEADS + branch, HEADS + main)
        self._published: str | None = None

    def tip(self) -> str | None:
        """The newest commit of our branch that counts, None if the store is empty.

        With a remote: what it is known to have. A branch that is new begins at the main one.
        """
        tips = (self.repository.tip(ref) for ref in self._tips)
        return next((tip for tip in tips if tip), None)

    def refresh(self) -> str | None:
        """The tip, fetched from the remote if there is one."""
        if self._remote:
            self._remote.fetch()
        return self.tip()

    def settle(self) -> str | None:
        """The revision up to which consumers may read now; None if the store is empty."""
        return self.refresh()

    @property
    def top(self) -> "SingleStore":
        """The one whose revisions consumers read."""
        return self

    def parts(self) -> list["SingleStore"]:
        """The stores of single repositories that this one consists of."""
        return [self]

    def part(self, kind: str, segment: int) -> "SingleStore":
        """The store of the repository that has a segment."""
        return self

    def repositories(self) -> list[Repository]:
        """All repositories of the store."""
        return [self.repository]

    def spans(self, old: str | None, new: str) -> Iterator[TreePair]:
        """Where the trees are that differ between two revisions of the store."""
        yield TreePair(self.repository, "", old or EMPTY_TREE, new)

    def settled_tip(self, part: "SingleStore") -> str | Pushed:
        """The tip of one of `parts`, to commit on so that `pin` has nothing else to pin."""
        return part.refresh() or Pushed(Reply.MOVED, "the store has gone")

    def pin(
        self, tips: Mapping[str, str | None], trailers: Mapping[str, str] | None = None
    ) -> str | None:
        """Let readers have these commits of the parts, by prefix; here they do. The new tip."""
        return self.tip()

    def commit(
        self,
        kind: str,
        changes: Sequence[Edit],
        still_ours: Callable[[], Collection[int]],
        trailers: Mapping[str, str],
    ) -> Committed:
        """Store the changes in one commit, in order of their ids; it is durable when this returns.

        Only what differs is committed: nothing, if nothing does. `still_ours` extends the leases
        and names the ids that may be stored; it is called again before every further attempt.
        Unavailable after `patience_s` in which others were always faster or the remote was down.
        """
        batch = {change.id: change.data for change in sorted(changes)}
        sent: list[Committed] = []  # the remote did not answer: it may have them

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
            made = self.publish(base, entries, fast_import.describe(_subject(kind, done), trailers))
            if not isinstance(made, Pushed):
                return done._replace(revision=made)
            if made.commit:
                sent.append(done._replace(revision=made.commit))
            return made

        return self.retried(attempt, while_down=still_ours)

    def retried(
        self, attempt: Callable[[], _T | Pushed], while_down: Callable[[], object] = lambda: None
    ) -> _T:
        """What `attempt` returns, again as long as its push is not accepted or the remote is down.

        A remote that is down is not waited for when it is time to end; `while_down` is called
        before each wait for it.
        """
        deadline = time.monotonic() + self.patience_s
        sleep: Callable[[float], object]
        for number in itertools.count():
            try:
                result = attempt()
            except Unavailable as error:
                result = Pushed(Reply.UNKNOWN, str(error))
            if not isinstance(result, Pushed):
                return result
            why = result.why
            if result.reply is Reply.UNKNOWN:
                while_down()
                if self._remote is None or self._stop:
                    raise Unavailable(why)
                log.warning("%s; trying again", why)
                sleep, wait_s = self._stop.wait, min(DOWN_S, 2 ** min(number, 10))
            else:
                log.info("%s: again on the new tip: %s", self.repository.path, why)
                sleep, wait_s = time.sleep, min(BACKOFF_S, 0.02 * 2 ** min(number, 10))
                why = f"{self.repository.path}: others always commit first: {why}"
            if result.reply is Reply.LOCKED:
                stale_locks.remove_locks(self.repository)
            if time.monotonic() + wait_s > deadline:
                raise Unavailable(why)
            sleep(random.uniform(0.5, 1) * wait_s)
        raise AssertionError("unreachable")

    def _difference(
        self, base: str | None, kind: str, batch: Mapping[int, bytes | None]
    ) -> tuple[list[Entry], Committed]:
        """What a commit on `base` has to change, and how much that is."""
        paths = {i: record_path(kind, i).removeprefix(self.prefix) for i in batch}
        before = fast_import.stored(self.repository, base, paths.values())
        changed = {
            i: "added" if paths[i] not in before else "removed" if data is None else "updated"
            for i, data in batch.items()
            if before.get(paths[i]) != (None if data is None else fast_import.blob_id(data))
        }
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
        """Put files, also other ones than records, on exactly `base`; the commit, durable.

        With a remote it is on a reference of its own until that has answered. ConfigurationError
        if our branch does not lead to our last one any more: somebody has put it back.
        """
        last = self._published
        if last and not self._leads_to(last):
            raise ConfigurationError(
                f"{self.repository.path}: {self._branch} was put back behind commit {last[:12]}, "
                "which is of this run: put it forward again, or go on from here by "
                "maintain_store.py --refetch, which wants again what it lacks"
            )
        made = self._publish(base, entries, message, parents)
        if not isinstance(made, Pushed):
            self._published = made
        return made

    def _leads_to(self, commit: str) -> bool:
        """Whether our branch does; of a repository in the place of ours others will tell."""
        tip = self.tip()
        if tip == commit or self.repository.replaced():
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
        """The branches that workers commit to besides the main one, and their tips."""
        prefix = HEADS + CRAWL
        tips = {ref.removeprefix(prefix): tip for ref, tip in self.repository.refs(prefix).items()}
        return {name: tip for name, tip in tips.items() if BRANCH.fullmatch(name)}

    def advance(self, commit: str, branch: str = "") -> Pushed:
        """Move our branch, or that one of `branches`, to a descendant; MOVED if it is not one."""
        ref = f"{HEADS}{CRAWL}{branch}" if branch else self._branch
        if self._remote:
            return self._remote.push(commit, ref)
        before = self.repository.tip(ref)
        if before and not objects.contains(self.repository.path, commit, before):
            return Pushed(Reply.MOVED, f"{ref} is not an ancestor of {commit}")
        with stale_locks.writing(self.repository):
            return fast_import.move(self.repository, ref, before, commit)

    def read(self, kind: str, ids: Iterable[int]) -> dict[int, bytes]:
        """Those of the records that are stored."""
        tip = self.tip()
        wanted = sorted(set(ids))
        found: dict[int, bytes] = {}
        for start in range(0, len(wanted) if tip else 0, READ_AT_ONCE):
            block = wanted[start : start + READ_AT_ONCE]
            paths = [record_path(kind, i).removeprefix(self.prefix) for i in block]
            blobs = objects.contents(self.repository.path, [f"{tip}:{path}" for path in paths])
            found |= {i: data for i, data in zip(block, blobs, strict=True) if data is not None}
        return found

    def ids(self, kind: str) -> Iterator[int]:
        """The ids of all stored records of a kind, ascending."""
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
        """The ids below a folder; within a directory Git sorts them as text."""
        where = ["--", folder] if folder else []
        paths = self.repository.lines("ls-tree", "-r", "--name-only", "-z", tip, *where)
        places = (parse_record_path(self.prefix + path.decode(errors="replace")) for path in paths)
        found = (place[1] for place in places if place)
        for _, neighbours in itertools.groupby(found, key=lambda i: i // 100):
            yield from sorted(neighbours)
