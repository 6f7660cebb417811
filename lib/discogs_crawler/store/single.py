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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from discogs_crawler import clock
from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.errors import Unavailable
from discogs_crawler.records import is_segment_name, parse_record_path, record_path, segment_of
from discogs_crawler.store import fast_import, git, stale_locks
from discogs_crawler.store.fast_import import Entry, Locked, Refused
from discogs_crawler.store.git import Author, Repository
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


class Change(NamedTuple):
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


class _Unsure(Exception):
    """The connection broke during a push: the remote may have the commit, or not."""

    def __init__(self, cause: Unavailable, committed: Committed) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.committed = committed


class Store:
    """Records in one repository: all of them, or with `prefix` those of `releases/13/`."""

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

    def parts(self) -> list["Store"]:
        """The stores of single repositories that this one consists of."""
        return [self]

    def part(self, kind: str, segment: int) -> "Store":
        """The store of the repository that has a segment."""
        return self

    def repositories(self) -> list[Repository]:
        """All repositories of the store."""
        return [self.repository]

    def commit(
        self,
        kind: str,
        changes: Sequence[Change],
        still_ours: Callable[[], Collection[int]],
        trailers: Mapping[str, str],
    ) -> Committed:
        """Store the changes in one commit, in order of their ids; it is durable when this returns.

        Only what differs is committed: nothing, if nothing does. `still_ours` extends the leases
        and names the ids that may be stored; it is called again before every further attempt.
        Unavailable after `patience_s` in which others were always faster or the remote was down.
        """
        batch = {change.id: change.data for change in sorted(changes)}
        unsure: Committed | None = None

        def attempt() -> Committed:
            nonlocal unsure
            try:
                base = self.refresh()
                if unsure and fast_import.contains(self.repository, base, unsure.revision):
                    return unsure
                ours = still_ours()
                left = {i: data for i, data in batch.items() if i in ours}
                return self._commit_on(base, kind, left, trailers)
            except _Unsure as broken:
                unsure = broken.committed
                still_ours()
                raise broken.cause from None
            except Unavailable:
                still_ours()
                raise

        return self.retried(attempt)

    def retried(self, attempt: Callable[[], _T]) -> _T:
        """What `attempt` returns, again as long as it is Refused or the remote is down.

        A remote that is down is not waited for when it is time to end.
        """
        deadline = time.monotonic() + self.patience_s
        sleep: Callable[[float], object]
        for number in itertools.count():
            try:
                return attempt()
            except Refused as refused:
                log.info("%s: again on the new tip: %s", self.repository.path, refused)
                if isinstance(refused, Locked):
                    stale_locks.remove_locks(self.repository)
                error = Unavailable(
                    f"{self.repository.path}: others always commit first: {refused}"
                )
                sleep, wait_s = time.sleep, min(BACKOFF_S, 0.02 * 2 ** min(number, 10))
            except Unavailable as down:
                if self._remote is None or self._stop:
                    raise
                log.warning("%s; trying again", down)
                error, sleep, wait_s = down, self._stop.wait, min(DOWN_S, 2 ** min(number, 10))
            if time.monotonic() + wait_s > deadline:
                raise error
            sleep(random.uniform(0.5, 1) * wait_s)
        raise AssertionError("unreachable")

    def _commit_on(
        self,
        base: str | None,
        kind: str,
        batch: Mapping[int, bytes | None],
        trailers: Mapping[str, str],
    ) -> Committed:
        paths = {i: record_path(kind, i).removeprefix(self.prefix) for i in batch}
        before = fast_import.stored(self.repository, base, paths.values())
        added: set[int] = set()
        updated: set[int] = set()
        removed: set[int] = set()
        for i, data in batch.items():
            if data is None:
                if paths[i] in before:
                    removed.add(i)
            elif paths[i] not in before:
                added.add(i)
            elif before[paths[i]] != fast_import.blob_id(data):
                updated.add(i)
        changed = frozenset(added | updated | removed)
        counts = (len(added), len(updated), len(removed))
        result = Committed(base or "", frozenset(batch), changed, *counts)
        if not changed:
            return result
        words = zip(counts, ("added", "changed", "removed"), strict=True)
        subject = f"{kind}: " + ", ".join(f"{count} {word}" for count, word in words if count)
        entries = [Entry(paths[i], batch[i]) for i in batch if i in changed]
        made = self._import(base, entries, fast_import.describe(subject, trailers), ())
        result = result._replace(revision=made)
        try:
            self._push(made)
        except Unavailable as broken:
            raise _Unsure(broken, result) from broken
        return result

    def publish(
        self,
        base: str | None,
        entries: Iterable[Entry],
        message: str,
        parents: Iterable[str] = (),
    ) -> str:
        """Put files, also other ones than records, on exactly `base`; the commit, durable.

        Refused if the branch has moved away from `base`.
        """
        made = self._import(base, entries, message, parents)
        self._push(made)
        return made

    def branches(self) -> dict[str, str]:
        """The branches that workers commit to besides the main one, and their tips."""
        prefix = HEADS + CRAWL
        tips = {ref.removeprefix(prefix): tip for ref, tip in self.repository.refs(prefix).items()}
        return {name: tip for name, tip in tips.items() if BRANCH.fullmatch(name)}

    def advance(self, commit: str, branch: str = "") -> None:
        """Move our branch, or that one of `branches`, to a descendant; Refused if it is not one."""
        ref = f"{HEADS}{CRAWL}{branch}" if branch else self._branch
        if self._remote:
            self._remote.push(commit, ref)
            return
        before = self.repository.tip(ref)
        if before and not fast_import.contains(self.repository, commit, before):
            raise Refused(f"{ref} is not an ancestor of {commit}")
        with stale_locks.writing(self.repository):
            done = self.repository.call("update-ref", ref, commit, before or "0" * 40)
        if done.returncode:
            raise Refused(done.stderr.decode("utf-8", "replace").strip())

    def _import(
        self, base: str | None, entries: Iterable[Entry], message: str, parents: Iterable[str]
    ) -> str:
        ref = self._branch
        if self._remote:
            ref = f"{PENDING}{int(clock.now())}-{secrets.token_hex(8)}"
        return fast_import.commit(
            self.repository, ref, base, entries, message, self.author, parents=parents
        )

    def _push(self, made: str) -> None:
        """Let the remote have the commit, which is on a reference of its own until then."""
        if self._remote is None:
            return
        try:
            self._remote.push(made, self._branch)
        finally:
            for ref, commit in self.repository.refs(PENDING).items():
                if commit == made:
                    self.repository.call("update-ref", "-d", ref, commit)

    def read(self, kind: str, ids: Iterable[int]) -> dict[int, bytes]:
        """Those of the records that are stored."""
        tip = self.tip()
        wanted = sorted(set(ids))
        found: dict[int, bytes] = {}
        for start in range(0, len(wanted) if tip else 0, READ_AT_ONCE):
            block = wanted[start : start + READ_AT_ONCE]
            paths = [record_path(kind, i).removeprefix(self.prefix) for i in block]
            blobs = git.read_blobs(self.repository, [f"{tip}:{path}" for path in paths])
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
            listing = self.repository.run("ls-tree", "-d", "--name-only", tip, f"{kind}/")
            paths = listing.decode(errors="replace").splitlines()
            names = [path.rpartition("/")[2] for path in paths]
            folders = [f"{kind}/{name}" for name in sorted(filter(is_segment_name, names), key=int)]
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
