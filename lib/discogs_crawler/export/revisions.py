"""The store's revisions, and the subtrees of records that differ between two.

A store has one of two layouts with the same paths: one repository, or a superproject that pins one
repository for each kind and million. Both come out as subtrees: a pair of trees with the path at
which they lie. Comparing one by one also bounds the memory of `git diff-tree`, which holds all
that differs (360 bytes a record) before it prints the first.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from discogs_crawler.errors import BadData
from discogs_crawler.records import KINDS, is_segment_name
from discogs_crawler.store import git_process, objects
from discogs_crawler.store.objects import (
    ABSENT,
    EMPTY_TREE,
    FILE,
    FOLDER,
    GITLINK,
    TECHNICAL,
    TreeDifference,
)

# Of what is left out each may take as long as the largest record: a second.
MOST_LEFT_OUT = 10_000


class StoreSource(NamedTuple):
    """A repository to read: its Git folder, the ref that is its tip, and its name.

    A `foreign` one may hold anything.
    """

    folder: Path
    tip: str
    name: str
    foreign: bool = False


class Stretch(NamedTuple):
    """Two commits (or the empty tree) of the store whose difference is to be exported."""

    old: str
    new: str


class Subtree(NamedTuple):
    """Two trees, and the path in the store at which they lie, e.g. `releases/13/`."""

    folder: Path
    prefix: str
    old: str
    new: str


class LeftOut:
    """Files among the records that are none: their number, and the first of them."""

    def __init__(self) -> None:
        self.number = 0
        self.first = ""
        self._met = 0

    def add(self, path: str) -> None:
        """Count what is there now."""
        self.number += 1
        self.first = self.first or path
        self.meet(path)

    def meet(self, path: str) -> None:
        """Go on past what is there or was there before; BadData if there is no end of it."""
        self._met += 1
        if self._met > MOST_LEFT_OUT:
            raise BadData(
                f"{path}: not a record, and neither are {MOST_LEFT_OUT:,} others in places of "
                "records: this is not a store"
            )


def tip_of(source: StoreSource) -> str | None:
    """The commit up to which readers may read; None if there is none yet."""
    return objects.look_up(source.folder, [f"{source.tip}^{{commit}}"])[0]


def commits(folder: Path, old: str, new: str) -> Iterator[tuple[str, bool]]:
    """Each commit after `old` along first parents up to `new`, and whether it is technical."""
    selection = [new] if old == EMPTY_TREE else [new, f"^{old}"]
    layout = f"--format=%H %(trailers:key={TECHNICAL},valueonly,unfold,separator=%x2C)"
    command = ("rev-list", "--first-parent", "--reverse", "--no-commit-header", layout, *selection)
    for line in git_process.lines(folder, *command, end=b"\n"):
        revision, _, technical = line.decode(errors="replace").partition(" ")
        yield revision, bool(technical)


def nth_commit(folder: Path, old: str, new: str, count: int) -> str:
    """The commit `count` commits after `old` along first parents; `new` if there are fewer."""
    for number, (revision, _) in enumerate(commits(folder, old, new), 1):
        if number == count:
            return revision
    return new


def stretches(folder: Path, old: str, new: str, *, skip_technical: bool) -> Iterator[Stretch]:
    """The stretch between two revisions, or the stretches between its technical commits.

    From nothing, and where history was rewritten, those are not left out: the result would be a
    state that no revision has.
    """
    if not skip_technical or old == EMPTY_TREE or not objects.contains(folder, new, old):
        yield Stretch(old, new)
        return
    begin = end = old
    for revision, technical in commits(folder, old, new):
        if technical and begin != end:
            yield Stretch(begin, end)
        end = revision
        if technical:
            begin = end
    if begin != end:
        yield Stretch(begin, end)


def subtrees(
    folder: Path, stretch: Stretch, kinds: Sequence[str], left_out: LeftOut
) -> Iterator[Subtree]:
    """The subtrees that differ between the two ends, in the order of their paths."""
    for kind in objects.few_differences(folder, *stretch):
        if kind.path not in KINDS:
            if kind.new_mode not in (FILE, ABSENT):
                left_out.add(kind.path)
        elif kind.path in kinds:
            if kind.new_mode not in (FOLDER, ABSENT):
                left_out.add(kind.path)
            trees = (_tree(kind.old_mode, kind.old), _tree(kind.new_mode, kind.new))
            for entry in objects.few_differences(folder, *trees):
                yield from _subtree(folder, kind.path, entry, left_out)


def _tree(mode: str, oid: str, *, wanted: str = FOLDER) -> str:
    return oid if mode == wanted else EMPTY_TREE


def _subtree(
    folder: Path, kind: str, entry: TreeDifference, left_out: LeftOut
) -> Iterator[Subtree]:
    path = f"{kind}/{entry.path}"
    modes = {entry.old_mode, entry.new_mode} & {FOLDER, GITLINK}
    is_one = is_segment_name(entry.path)
    if entry.new_mode != ABSENT and not (is_one and entry.new_mode in modes):
        left_out.add(path)
    if not is_one or not modes:
        return
    if len(modes) > 1:
        raise BadData(
            f"{folder}: {path} is a folder in one revision and a submodule in the other; "
            "export with --from or --reset to a revision of the same layout"
        )
    (mode,) = modes
    where = submodule_folder(folder, path) if mode == GITLINK else folder
    old = _tree(entry.old_mode, entry.old, wanted=mode)
    new = _tree(entry.new_mode, entry.new, wanted=mode)
    if mode == GITLINK:
        _refuse_missing(where, old, new)
    yield Subtree(where, path + "/", old, new)


def _refuse_missing(folder: Path, old: str, new: str) -> None:
    """Raise BadData if a submodule lacks one of the two commits that are to be compared."""
    found = objects.look_up(folder, [f"{name}^{{tree}}" for name in (old, new)])
    if found[1] is None:
        raise BadData(
            f"{folder}: commit {new} is not here; run `git submodule update --init`, or restore a "
            "newer copy of this repository"
        )
    if found[0] is None:
        raise BadData(
            f"{folder}: there is no commit {old}, where the consumer is; it is an older copy, or "
            "history was rewritten or pruned. Restore the newer copy, or begin again with --reset "
            "start (or now, or a revision)"
        )


def submodule_folder(folder: Path, path: str) -> Path:
    """The Git folder of the submodule that is mounted at `path`; BadData if it is not here."""
    candidates = (
        folder / "modules" / path,
        folder.parent / f"{path}.git",
        folder.parent / path / ".git",
    )
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise BadData(
        f"{folder}: the submodule {path} is not here; "
        "run `git submodule update --init`, or give the URL as --repository"
    )
