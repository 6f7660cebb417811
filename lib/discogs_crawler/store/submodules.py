"""The store as one repository for each kind and million, mounted in a superproject.

`STORE/releases/13.git` holds what the single layout has below `releases/13/`, so paths are the
same. Workers commit to those repositories; the superproject `STORE/discogs.git` pins one commit of
each, and is what consumers clone and read. It is advanced by whoever reads, under a lock.

With STORE_REMOTE each repository has its counterpart there, and goes by the rules of `remote`. The
superproject names a segment (in `.gitmodules`) before anybody commits to it, so that all machines
know of it, and pins what was fetched after the superproject itself: only what the remote has, and
nothing that is behind what others have pinned. Only a machine with the ledger, which has all
history, pins.
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

# Repositories that are fetched at once. Most of a fetch without news is waiting; a server of ssh
# refuses more than 10 that have not logged in yet.
FETCHES = 4


class Elsewhere(NamedTuple):
    """The other side: where the counterparts of the repositories are."""

    remote: str
    """STORE_REMOTE: their folder, or a pattern with `{repository}`"""
    whole: bool
    """whether the records and the history of the segments are to be here"""
    stop: Stop


def _nothing() -> None:
    pass


class SubmoduleStore:
    """Records in many repositories."""

    layout = "submodules"

    def __init__(
        self,
        superproject: Repository,
        branch: str,
        main: str,
        author: Author,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.repository = superproject
        self.author = author
        self._folder = superproject.path.parent
        self._branch = branch
        self._main = main
        self._elsewhere = elsewhere
        self._parts: dict[str, SingleStore] = {}
        self._announced: set[str] = set()
        self.top = self._store(superproject, main)

    def _store(self, repository: Repository, branch: str, prefix: str = "") -> SingleStore:
        """The store of one repository, with its counterpart."""
        where, remote = self._elsewhere, None
        if where:
            path = prefix.rstrip("/")
            # What the remote pins has to be there.
            theirs = self.pins(self.repository.tip(TRACKING + self._main)) if path else {}
            levels = 1 if NAME in where.remote or not path else 2
            remote = Remote(
                repository,
                address_of(where.remote, path or "discogs"),
                self._main,
                whole=where.whole or not path,
                stop=where.stop,
                levels=0 if path in theirs else levels,
                before_giving=_nothing if path else self._give_parts,
            )
        stop = where.stop if where else None
        main, author = self._main, self.author
        return SingleStore(
            repository, branch, main, author, remote=remote, prefix=prefix, stop=stop
        )

    def tip(self) -> str | None:
        """The newest commit of the superproject, None if nothing was pinned yet."""
        return self.top.tip()

    def refresh(self) -> str | None:
        """Fetch all, a machine with the ledger also what only others have; the superproject's tip.

        That tip was fetched first, so what it pins is here.
        """
        tip = self.top.refresh()
        if self._elsewhere:
            for path in self._named(tip) if self._elsewhere.whole else ():
                self._made(path)
            self._fetch_parts()
        return tip

    def _give_parts(self) -> None:
        """Let the remote have what the superproject pins, before that."""
        for path in self.pins(self.tip()):
            if not (self._folder / f"{path}.git").exists():
                raise ConfigurationError(
                    f"STORE_REMOTE has lost what {self.repository.path} has of it, and {path} is "
                    "not here: run maintain_store.py on the machine that has the ledger"
                )
        self._fetch_parts()

    def _fetch_parts(self) -> None:
        with ThreadPoolExecutor(FETCHES, "fetch") as pool:
            try:
                for _ in pool.map(SingleStore.refresh, self.parts()):
                    pass
            except KeyboardInterrupt:
                if self._elsewhere:  # the threads did not hear it, and a remote may be silent
                    self._elsewhere.stop.ask()
                raise

    def settle(self) -> str | None:
        """Pin what is committed by now; the commit of the superproject that has it."""
        if self._elsewhere and not self._elsewhere.whole:
            return self.top.refresh()
        with locks.exclusive(self._folder / "pins.lock", "pinning", wait=True):
            fetched = [self.refresh()]  # a remote that is down is not waited for

            def attempt() -> str | Pushed | None:
                base = fetched.pop() if fetched else self.refresh()
                return self._pin(base, {part.prefix: part.tip() for part in self.parts()}, {})

            return self.top.retried(attempt)

    def pin(
        self, tips: Mapping[str, str | None], trailers: Mapping[str, str] | None = None
    ) -> str | None:
        """Let the superproject have these commits, by prefix (`releases/13/`); its new tip."""
        with locks.exclusive(self._folder / "pins.lock", "pinning", wait=True):
            return self.top.retried(lambda: self._pin(self.top.refresh(), tips, trailers or {}))

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
        names = self._named(base)
        modules = self._gitmodules({*names, *before, *wanted})
        if not moved and modules == self._gitmodules_of(base):
            return base
        entries = [Entry(path, None, tip, GITLINK) for path, tip in moved.items()]
        entries.append(Entry(".gitmodules", modules))
        subject = f"pins: {', '.join(list(moved)[:5])}" + (", ..." if len(moved) > 5 else "")
        return self.top.publish(base, entries, fast_import.describe(subject, trailers))

    def _is_behind(self, path: str, tip: str, pinned: str | None) -> bool:
        """Whether others have pinned a descendant of the commit. Readers never go back."""
        if pinned is None:
            return False
        part = self._made(path)
        folder = part.repository.path
        if objects.look_up(folder, [f"{pinned}^{{commit}}"]) == [None]:
            part.refresh()
            if objects.look_up(folder, [f"{pinned}^{{commit}}"]) == [None]:
                return False  # an older copy was put back
        return objects.contains(folder, pinned, tip)

    def pins(self, revision: str | None) -> dict[str, str]:
        """The commits that a commit of the superproject pins, by path (`releases/13`)."""
        return objects.segments(self.repository.path, revision, GITLINK) if revision else {}

    def _gitmodules(self, paths: Collection[str]) -> bytes:
        """`.gitmodules` with URLs relative to the superproject's, to be cloned from anywhere."""
        remote = self._elsewhere.remote if self._elsewhere else ""
        folder = "../" + re.split("[/:]", remote)[-1] if NAME in remote else ".."
        return "".join(
            f'[submodule "{path}"]\n\tpath = {path}\n\turl = {address_of(folder, path)}\n'
            for path in sorted(paths)
        ).encode()

    def _gitmodules_of(self, revision: str | None) -> bytes:
        names = [f"{revision}:.gitmodules"] if revision else []
        return next(objects.contents(self.repository.path, names), None) or b""

    def _named(self, revision: str | None) -> set[str]:
        """The paths of the segments that there are, pinned or not."""
        found = re.findall(rb"^\tpath = (\w+)/(\w+)$", self._gitmodules_of(revision), re.MULTILINE)
        names = [(kind.decode(), name.decode()) for kind, name in found]
        return {f"{kind}/{name}" for kind, name in names if kind in KINDS and is_segment_name(name)}

    def _announce(self, path: str, while_down: Callable[[], object] = lambda: None) -> None:
        """Let all machines know that there is such a segment."""
        if self._elsewhere is None or path in self._announced:
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
        """The stores of the segments that are here, in the order of kinds and numbers."""
        found = []
        for kind in KINDS:
            numbers = sorted(int(path.stem) for path in (self._folder / kind).glob("[0-9]*.git"))
            found += [self._made(f"{kind}/{number:02d}") for number in numbers]
        return found

    def part(self, kind: str, segment: int) -> SingleStore:
        """The store of a segment, made if there is none."""
        path = f"{kind}/{segment:02d}"
        self._announce(path)
        return self._made(path)

    def _made(self, path: str) -> SingleStore:
        if path not in self._parts:
            folder = self._folder / f"{path}.git"
            if not folder.exists():
                git.create(folder, self._main, "segment")
            repository = Repository(folder)
            repository.check_branch(self._main)
            if self._elsewhere is None and is_partial(repository):
                raise ConfigurationError(
                    f"{folder}: it has only what a worker needs of its remote: set STORE_REMOTE "
                    f"again, or move {self._folder} away"
                )
            self._parts[path] = self._store(repository, self._branch, f"{path}/")
        return self._parts[path]

    def repositories(self) -> list[Repository]:
        """All repositories of the store."""
        return [self.repository, *(part.repository for part in self.parts())]

    def spans(self, old: str | None, new: str) -> Iterator[TreePair]:
        """The superproject, then the parts whose pins differ."""
        yield TreePair(self.repository, "", old or EMPTY_TREE, new)
        before = self.pins(old)
        parts = {part.prefix: part.repository for part in self.parts()}
        for path, pinned in self.pins(new).items():
            prefix = f"{path}/"
            if before.get(path) != pinned and prefix in parts:
                yield TreePair(parts[prefix], prefix, before.get(path, EMPTY_TREE), pinned)

    def settled_tip(self, part: SingleStore) -> str | Pushed:
        """See `SingleStore.settled_tip`: one that is pinned."""
        if self._elsewhere and not self._elsewhere.whole:
            raise ConfigurationError(
                f"{self._folder}: it has only what a worker needs of its remote: do this on the "
                "machine that has the ledger"
            )
        tip = part.refresh()
        pinned = self.pins(self.pin({part.prefix: tip})).get(part.prefix.rstrip("/"))
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
        """As `SingleStore.commit`, with one commit for each segment that the batch touches."""
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
        """Those of the records that are stored."""
        wanted = sorted(set(ids))
        found: dict[int, bytes] = {}
        for part in self.parts():
            if part.prefix.startswith(f"{kind}/"):
                segment = int(part.prefix.split("/")[1])
                found |= part.read(kind, [i for i in wanted if segment_of(i) == segment])
        return found

    def ids(self, kind: str) -> Iterator[int]:
        """The ids of all stored records of a kind, ascending."""
        for part in self.parts():
            yield from part.ids(kind)
