"""The store: every record as a JSON file in Git, and the only way to change one.

One commit: read the tip; ask which ids of the batch are still ours; commit from that tip. If the
branch has moved meanwhile all three again, so that nobody commits over a newer result.
"""

import logging
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from discogs_crawler import git, importing
from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError, Unavailable
from discogs_crawler.git import Author, Repository
from discogs_crawler.importing import Entry, Refused
from discogs_crawler.records import parse_record_path, record_path

log = logging.getLogger(__name__)

# How often a batch is put on a new tip before we give up: others commit a few times a minute.
ATTEMPTS = 30

# The longest random wait between two of them, in seconds.
BACKOFF_S = 0.5

# Records read at once: 200 of the largest are 30 MB.
READ_AT_ONCE = 200


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


class Span(NamedTuple):
    """A part of the store between two revisions: a repository and two of its commits."""

    repository: Repository
    prefix: str
    """of the paths in the whole store, "" or `releases/13/`"""
    old: str
    """a commit, or the empty tree"""
    new: str


class Store:
    """The store in one repository (STORE_LAYOUT=single)."""

    def __init__(self, repository: Repository, branch: str, main: str, author: Author) -> None:
        self.repository = repository
        self._ref = f"refs/heads/{branch}"
        self._main = f"refs/heads/{main}"
        self._author = author

    def tip(self) -> str | None:
        """The newest commit of our branch, None if the store is empty."""
        return self.repository.tip(self._ref) or self.repository.tip(self._main)

    def settle(self) -> str | None:
        """The revision up to which a consumer may read now; None if the store is empty."""
        return self.tip()

    def spans(self, old: str | None, new: str) -> list[Span]:
        """Which commits of which repositories to compare for what changed from `old` to `new`.

        `old` None: since the beginning. In the order of the paths.
        """
        return [Span(self.repository, "", old or git.EMPTY_TREE, new)]

    def commit(
        self,
        kind: str,
        changes: Sequence[Change],
        still_ours: Callable[[], Collection[int]],
        trailers: Mapping[str, str],
    ) -> Committed:
        """Store the changes in one commit, in order of their ids; safe on disk when it returns.

        Only what differs is committed: nothing, if nothing does. `still_ours` extends the leases
        and names the ids that may be stored; it is called again whenever the branch has moved.
        """
        batch = {change.id: change.data for change in sorted(changes)}
        for attempt in range(ATTEMPTS):
            base = self.tip()
            ours = set(still_ours()) & set(batch)
            try:
                return self._commit_on(base, kind, {i: batch[i] for i in sorted(ours)}, trailers)
            except Refused as refused:
                log.info("the branch has moved, so the batch is put on its new tip: %s", refused)
                time.sleep(random.uniform(0, min(BACKOFF_S, 0.02 * 2**attempt)))
        raise Unavailable(f"{self.repository.path}: no commit in {ATTEMPTS} attempts, run it again")

    def _commit_on(
        self,
        base: str | None,
        kind: str,
        batch: Mapping[int, bytes | None],
        trailers: Mapping[str, str],
    ) -> Committed:
        paths = {record_id: record_path(kind, record_id) for record_id in batch}
        before = importing.stored(self.repository, base, paths.values())
        added = [i for i, data in batch.items() if data is not None and paths[i] not in before]
        updated = [
            i
            for i, data in batch.items()
            if data is not None and before.get(paths[i]) not in (None, importing.blob_id(data))
        ]
        removed = [i for i, data in batch.items() if data is None and paths[i] in before]
        changed = frozenset([*added, *updated, *removed])
        revision = base or ""
        if changed:
            counts = ((added, "added"), (updated, "changed"), (removed, "removed"))
            subject = f"{kind}: " + ", ".join(f"{len(ids)} {what}" for ids, what in counts if ids)
            revision = importing.commit(
                self.repository,
                self._ref,
                base,
                [Entry(paths[i], batch[i]) for i in batch if i in changed],
                importing.describe(subject, trailers),
                self._author,
            )
        return Committed(
            revision, frozenset(batch), changed, len(added), len(updated), len(removed)
        )

    def read(self, kind: str, ids: Iterable[int]) -> dict[int, bytes]:
        """Those of the records that are stored."""
        tip = self.tip()
        wanted = sorted(set(ids))
        found: dict[int, bytes] = {}
        for start in range(0, len(wanted) if tip else 0, READ_AT_ONCE):
            block = wanted[start : start + READ_AT_ONCE]
            names = [f"{tip}:{record_path(kind, record_id)}" for record_id in block]
            blobs = git.read_blobs(self.repository, names)
            for record_id, data in zip(block, blobs, strict=True):
                if data is not None:
                    found[record_id] = data
        return found

    def ids(self, kind: str) -> Iterator[int]:
        """The ids of all stored records of a kind, ascending."""
        tip = self.tip()
        if tip is None:
            return
        folders = self.repository.run("ls-tree", "--name-only", tip, f"{kind}/").decode().split()
        for folder in sorted(folders, key=lambda path: int(path.rpartition("/")[2])):
            yield from _ids_below(self.repository, tip, folder, "")


def _ids_below(repository: Repository, tip: str, folder: str, prefix: str) -> Iterator[int]:
    """The ids of the records below a folder; Git sorts them as text within a directory."""
    paths = repository.lines(
        "ls-tree", "-r", "--name-only", "-z", tip, "--", *filter(None, [folder])
    )
    places = (parse_record_path(prefix + path.decode()) for path in paths)
    found = (place[1] for place in places if place)
    for _, neighbours in groupby(found, key=lambda record_id: record_id // 100):
        yield from sorted(neighbours)


def repository_path(settings: Settings) -> Path:
    """The repository of the single layout."""
    return settings.store / "discogs.git"


def open_store(settings: Settings, *, create: bool = True, branch: str | None = None) -> Store:
    """The store of these settings; with `branch` commits go to `crawl/BRANCH`.

    ConfigurationError if it is not there and `create` is False.
    """
    path = repository_path(settings)
    git.check_version()
    if create:
        repository = git.create(path, settings.store_branch)
    elif (path / "HEAD").exists():
        repository = Repository(path)
    else:
        raise ConfigurationError(f"{path}: there is no store yet; worker.py makes it")
    author = Author(settings.git_author_name, settings.git_author_email)
    name = f"crawl/{branch}" if branch else settings.store_branch
    return Store(repository, name, settings.store_branch, author)
