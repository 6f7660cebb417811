"""The store as one repository per kind and million (a segment), mounted in a superproject.

`STORE/releases/13.git` has what the single layout has below `releases/13/`, so paths are the same.
Workers commit to these repositories. The superproject `STORE/discogs.git` pins one commit of each;
consumers clone and read it. Exports and maintenance pin new commits, under a lock.

With STORE_REMOTE each repository has a counterpart there (see `remote`). A segment is named in the
superproject's `.gitmodules` before the first commit to it, so that all machines know of it. Commits
are pinned only if the remote has them, so the superproject is fetched first, and never if others
have pinned a later one. Only a machine with the ledger, which has all history, pins.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from discogs_crawler import locks
from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.errors import ConfigurationError
from discogs_crawler.records import KINDS, is_segment_name, segment_of
from discogs_crawler.store import fast_import, git, objects
from discogs_crawler.store.fast_import import Entry, Pushed, Reply
from discogs_crawler.store.git import Author, Repository
from discogs_crawler.store.objects import EMPTY_TREE, GITLINK
from discogs_crawler.store.remote import NAME, TRACKING, Remote, address_of, is_partial
from discogs_crawler.store.single import Committed, Edit, SingleStore, TreePair

# Repositories that are fetched at once. A fetch without news is mostly waiting; an ssh server
# refuses more than 10 connections that have not logged in yet.
FETCHES = 4


class RemoteFolder(NamedTuple):
    """Where the remotes of the repositories are."""

    address: str
    """STORE_REMOTE: their folder, or a pattern with `{repository}`"""
    whole: bool
    """whether all records and all history of the segments are needed here"""
    stop: Stop


class SubmoduleStore:
    """Records in many repositories."""

    layout = "submodules"

    def __init__(
        self,
        superproject: Repository,
        branch: str,
        main: str,
        author: Author,
        remotes: RemoteFolder | None = None,
    ) -> None:
        self.repository = superproject
        self.author = author
        self._folder = superproject.path.parent
        self._branch = branch
        self._main = main
        self._remotes = remotes
        self._parts: dict[str, SingleStore] = {}
        self._announced: set[str] = set()
        self.top = self._store(superproject, main)

    def _store(self, repository: Repository, branch: str, prefix: str = "") -> SingleStore:
        """Return the store of one repository, with its remote."""
        where, remote = self._remotes, None
        if where:
            path = prefix.rstrip("/")
            # What the superproject of the remote pins must exist there: it is not created.
            theirs = self.pins(self.repository.tip(TRACKING + self._main)) if path else {}
            levels = 1 if NAME in where.address or not path else 2
            remote = Remote(
                repository,
                address_of(where.address, path or "discogs"),
                self._main,
                whole=where.whole or not path,
                stop=where.stop,
                levels=0 if path in theirs else levels,
                before_filling=(lambda: None) if path else self._fill_parts,
            )
        return SingleStore(
            repository, branch, self._main, self.author, remote=remote, prefix=prefix
        )

    def tip(self) -> str | None:
        """Return the newest commit of the superproject; None if nothing was pinned yet."""
        return self.top.tip()

    def refresh(self) -> str | None:
        """Fetch all repositories, and return the tip of the superproject, which was fetched first.

        A machine with the ledger also fetches segments that only others had until now.
        """
        tip = self.top.refresh()
        if self._remotes:
            for path in self._named(tip) if self._remotes.whole else ():
                self._open(path)
            self._fetch_parts()
        return tip

    def _fill_parts(self) -> None:
        """Push what the superproject pins and the remote lacks, before the superproject itself.

        A worker, which has only some of the segments, may give back a name that it announced.
        """
        theirs = self.pins(self.repository.tip(TRACKING + self._main))
        for path, pin in self.pins(self.tip()).items():
            if theirs.get(path) != pin and not (self._folder / f"{path}.git").exists():
                raise ConfigurationError(
                    f"STORE_REMOTE has lost what {self.repository.path} has of it, and {path} is "
                    "not here: run maintain_store.py on the machine that has the ledger"
                )
        self._fetch_parts()

    def _fetch_parts(self) -> None:
        with ThreadPoolExecutor(FETCHES, "fetch") as pool:
            try:
                list(pool.map(SingleStore.refresh, self.parts()))
            except KeyboardInterrupt:
                if self._remotes:  # otherwise the threads would go on waiting for their remotes
                    self._remotes.stop.ask()
                raise

    def settle(self) -> str | None:
        """Pin what is committed now, and return the commit of the superproject that has it."""
        if self._remotes and not self._remotes.whole:
            return self.top.refresh()
        with locks.exclusive(self._folder / "pins.lock", "pinning", wait=True):
            fetched = [self.refresh()]  # outside of `retried`: it fails at once if a remote is down

            def attempt() -> str | Pushed | None:
                base = fetched.pop() if fetched else self.refresh()
                return self._pin(base, {part.prefix: part.tip() for part in self.parts()}, {})

            return self.top.retried(attempt)

    def pin(self, tips: Mapping[str, str | None], trailers: Mapping[str, str]) -> str | None:
        """Pin these commits, by prefix (`releases/13/`); return the new tip of the superproject."""
        with locks.exclusive(self._folder / "pins.lock", "pinning", wait=True):
            return self.top.retried(lambda: self._pin(self.top.refresh(), tips, trailers))

    def _pin(
        self, base: str | None, tips: Mapping[str, str | None], trailers: Mapping[str, str]
    ) -> str | Pushed | None:
        before = self.pins(base)
        wanted = {prefix.rstrip("/"): tip for prefix, tip in tips.items() if tip}
        moved = {
            path: tip
            for path, tip in sorted(wanted.items())
            if before.get(path) != tip and not self._is_behind(path, tip, before.get(path))
        }
        modules = self._gitmodules({*self._named(base), *before, *wanted})
        if not moved and modules == self._gitmodules_of(base):
            return base
        entries = [Entry(path, None, tip, GITLINK) for path, tip in moved.items()]
        entries.append(Entry(".gitmodules", modules))
        subject = f"pins: {', '.join(list(moved)[:5])}" + (", ..." if len(moved) > 5 else "")
        return self.top.publish(base, entries, fast_import.describe(subject, trailers))

    def _is_behind(self, path: str, tip: str, pinned: str | None) -> bool:
        """Whether others have pinned a descendant of the commit, which must then stay pinned."""
        if pinned is None:
            return False
        part = self._open(path)
        folder = part.repository.path
        if objects.look_up(folder, [f"{pinned}^{{commit}}"]) == [None]:
            part.refresh()
            if objects.look_up(folder, [f"{pinned}^{{commit}}"]) == [None]:
                return False  # an older copy was restored
        return objects.contains(folder, pinned, tip)

    def pins(self, revision: str | None) -> dict[str, str]:
        """Return the commits that a commit of the superproject pins, by path (`releases/13`)."""
        return objects.segments(self.repository.path, revision, GITLINK) if revision else {}

    def _gitmodules(self, paths: Collection[str]) -> bytes:
        """Return `.gitmodules` with URLs relative to the superproject's, which work anywhere."""
        address = self._remotes.address if self._remotes else ""
        folder = "../" + re.split("[/:]", address)[-1] if NAME in address else ".."
        return "".join(
            f'[submodule "{path}"]\n\tpath = {path}\n\turl = {address_of(folder, path)}\n'
            for path in sorted(paths)
        ).encode()

    def _gitmodules_of(self, revision: str | None) -> bytes:
        names = [f"{revision}:.gitmodules"] if revision else []
        return next(objects.contents(self.repository.path, names), None) or b""

    def _named(self, revision: str | None) -> set[str]:
        """Return the paths of the segments that `.gitmodules` names, pinned or not."""
        found = re.findall(rb"^\tpath = (\w+)/(\w+)$", self._gitmodules_of(revision), re.MULTILINE)
        names = [(kind.decode(), name.decode()) for kind, name in found]
        return {f"{kind}/{name}" for kind, name in names if kind in KINDS and is_segment_name(name)}

    def _announce(self, path: str, while_down: Callable[[], object] = lambda: None) -> None:
        """Name a segment in the superproject, so that all machines know of it."""
        if self._remotes is None or path in self._announced:
            return

        def attempt() -> str | Pushed:
            base = self.top.refresh()
            names = self._named(base)
            if base is not None and path in names:
                return base
            entry = Entry(".gitmodules", self._gitmodules({*names, path}))
            return self.top.publish(base, [entry], f"segments: {path}\n")

        self.top.retried(attempt, while_down)
        self._announced.add(path)

    def parts(self) -> list[SingleStore]:
        """Return the stores of the segments that are here, in the order of kinds and numbers."""
        found = []
        for kind in KINDS:
            names = (path.stem for path in (self._folder / kind).glob("*.git"))
            here = sorted(filter(is_segment_name, names), key=int)
            found += [self._open(f"{kind}/{name}") for name in here]
        return found

    def part(self, kind: str, segment: int) -> SingleStore:
        """Return the store of a segment; it is created if it does not exist."""
        path = f"{kind}/{segment:02d}"
        self._announce(path)
        return self._open(path)

    def _open(self, path: str) -> SingleStore:
        if path not in self._parts:
            folder = self._folder / f"{path}.git"
            here = folder.exists()
            repository = Repository(folder) if here else git.create(folder, self._main, "segment")
            repository.check_branch(self._main)
            if self._remotes is None and is_partial(repository):
                raise ConfigurationError(
                    f"{folder}: a worker's partial copy of its remote: set STORE_REMOTE again, or "
                    f"move {self._folder} away"
                )
            self._parts[path] = self._store(repository, self._branch, f"{path}/")
        return self._parts[path]

    def repositories(self) -> list[Repository]:
        """Return all repositories of the store."""
        return [self.repository, *(part.repository for part in self.parts())]

    def spans(self, old: str | None, new: str) -> Iterator[TreePair]:
        """Yield the trees of the superproject, then those of the segments whose pins differ."""
        yield TreePair(self.repository, "", old or EMPTY_TREE, new)
        before = self.pins(old)
        parts = {part.prefix: part.repository for part in self.parts()}
        for path, pinned in self.pins(new).items():
            prefix = f"{path}/"
            if before.get(path) != pinned and prefix in parts:
                yield TreePair(parts[prefix], prefix, before.get(path, EMPTY_TREE), pinned)

    def settled_tip(self, part: SingleStore) -> str | Pushed:
        """Return the tip of one of `parts` once it is pinned; MOVED if a worker has committed."""
        if self._remotes and not self._remotes.whole:
            raise ConfigurationError(
                f"{self._folder}: a worker's partial copy of its remote: do this on the machine "
                "that has the ledger"
            )
        tip = part.refresh()
        pinned = self.pins(self.pin({part.prefix: tip}, {})).get(part.prefix.rstrip("/"))
        if pinned is None or pinned != part.tip():
            return Pushed(Reply.MOVED, "a worker has committed")
        return pinned

    def commit(
        self,
        kind: str,
        changes: Sequence[Edit],
        still_ours: Callable[[], Collection[int]],
        trailers: Mapping[str, str],
    ) -> Committed:
        """Do the same as `SingleStore.commit`, with one commit per segment of the batch."""
        done = Committed("", frozenset(), frozenset(), 0, 0, 0)
        for segment in sorted({segment_of(change.id) for change in changes}):
            self._announce(f"{kind}/{segment:02d}", still_ours)
            part = self.part(kind, segment)
            mine = [change for change in changes if segment_of(change.id) == segment]
            more = part.commit(kind, mine, still_ours, trailers)
            done = Committed(
                more.revision or done.revision,
                done.ids | more.ids,
                done.changed | more.changed,
                done.added + more.added,
                done.updated + more.updated,
                done.removed + more.removed,
                {**done.segments, segment: more.revision},
            )
        return done

    def read(self, kind: str, ids: Iterable[int]) -> dict[int, bytes]:
        """Return the stored records among these, by id."""
        wanted = sorted(set(ids))
        found: dict[int, bytes] = {}
        for part in self.parts():
            if part.prefix.startswith(f"{kind}/"):
                segment = int(part.prefix.split("/")[1])
                found |= part.read(kind, [i for i in wanted if segment_of(i) == segment])
        return found

    def ids(self, kind: str) -> Iterator[int]:
        """Yield the ids of all stored records of a kind, ascending."""
        for part in self.parts():
            yield from part.ids(kind)
