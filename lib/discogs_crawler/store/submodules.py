"""The store as one repository for each kind and million, mounted in a superproject.

`STORE/releases/13.git` holds what the single layout has below `releases/13/`, so paths are the
same. Workers commit to those repositories; the superproject `STORE/discogs.git` pins one commit of
each, and is what consumers clone and read. It is advanced by whoever reads, under a lock.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from discogs_crawler import locks
from discogs_crawler.records import KINDS, segment_of
from discogs_crawler.store import fast_import, git, objects
from discogs_crawler.store.fast_import import Entry, Pushed, Reply
from discogs_crawler.store.git import Author, Repository
from discogs_crawler.store.objects import EMPTY_TREE, GITLINK
from discogs_crawler.store.single import Committed, Edit, SingleStore, TreePair


class SubmoduleStore:
    """Records in many repositories."""

    layout = "submodules"

    def __init__(self, superproject: Repository, branch: str, main: str, author: Author) -> None:
        self.repository = superproject
        self.author = author
        self._folder = superproject.path.parent
        self._branch = branch
        self._main = main
        self.top = SingleStore(superproject, main, main, author)

    def tip(self) -> str | None:
        """The newest commit of the superproject, None if nothing was pinned yet."""
        return self.top.tip()

    def settle(self) -> str | None:
        """Pin what is committed by now; the commit of the superproject that has it."""
        return self.pin({part.prefix: part.tip() for part in self.parts()})

    def pin(
        self, tips: Mapping[str, str | None], trailers: Mapping[str, str] | None = None
    ) -> str | None:
        """Let the superproject have these commits, by prefix (`releases/13/`); its new tip."""
        with locks.exclusive(self._folder / "pins.lock", "pinning", wait=True):
            return self.top.retried(lambda: self._pin(tips, trailers or {}))

    def _pin(
        self, tips: Mapping[str, str | None], trailers: Mapping[str, str]
    ) -> str | Pushed | None:
        base = self.tip()
        before = self.pins(base)
        wanted = {prefix.rstrip("/"): tip for prefix, tip in tips.items() if tip}
        moved = {path: tip for path, tip in sorted(wanted.items()) if before.get(path) != tip}
        if not moved:
            return base
        entries = [Entry(path, None, tip, GITLINK) for path, tip in moved.items()]
        entries.append(Entry(".gitmodules", _gitmodules({*before, *wanted})))
        subject = f"pins: {', '.join(list(moved)[:5])}" + (", ..." if len(moved) > 5 else "")
        return self.top.publish(base, entries, fast_import.describe(subject, trailers))

    def pins(self, revision: str | None) -> dict[str, str]:
        """The commits that a commit of the superproject pins, by path (`releases/13`)."""
        return objects.segments(self.repository.path, revision, GITLINK) if revision else {}

    def parts(self) -> list[SingleStore]:
        """The stores of the segments, in the order of kinds and numbers."""
        found = []
        for kind in KINDS:
            numbers = sorted(int(path.stem) for path in (self._folder / kind).glob("[0-9]*.git"))
            found += [self._part(kind, number) for number in numbers]
        return found

    def part(self, kind: str, segment: int) -> SingleStore:
        """The store of a segment, made if there is none."""
        part = self._part(kind, segment)
        if not part.repository.path.exists():
            git.create(part.repository.path, self._main, "segment")
            part = self._part(kind, segment)
        return part

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
        self.settle()
        pinned = self.pins(self.tip()).get(part.prefix.rstrip("/"))
        if pinned is None or pinned != part.tip():
            return Pushed(Reply.MOVED, "a worker has committed")
        return pinned

    def _part(self, kind: str, segment: int) -> SingleStore:
        name = f"{segment:02d}"
        repository = Repository(self._folder / kind / f"{name}.git")
        if repository.path.exists():
            repository.check_branch(self._main)
        return SingleStore(
            repository, self._branch, self._main, self.author, prefix=f"{kind}/{name}/"
        )

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


def _gitmodules(paths: Collection[str]) -> bytes:
    """`.gitmodules` with URLs relative to the superproject's, so that it can be cloned anywhere."""
    return "".join(
        f'[submodule "{path}"]\n\tpath = {path}\n\turl = ../{path}.git\n' for path in sorted(paths)
    ).encode()
