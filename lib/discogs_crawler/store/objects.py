"""Read Git's objects: what names stand for, what differs between two trees, what files hold."""

import io
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from discogs_crawler.errors import BadData
from discogs_crawler.records import KINDS, is_segment_name
from discogs_crawler.store import git_process

# The name that every Git knows for a tree without entries: what there was before the first commit.
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

# Put by `maintain_store.py --reclean` on commits that change records without a change at Discogs.
TECHNICAL = "Technical"

# Modes of what is in a tree.
FILE = "100644"
FOLDER = "040000"
GITLINK = "160000"
ABSENT = "000000"

# Commits that are asked for before the first answer is read: a pipe has room for them.
_AT_ONCE = 500

# Bytes that are read at once.
_BLOCK = 1 << 18

_OPTIONS = ("--raw", "--no-abbrev", "--no-renames", "-z")

# Folders of 10,000 ids compared at once: `diff-tree` holds 330 bytes for each file that differs
# before it prints the first, so 66 MB. Such a folder lies 3 below the root.
_FOLDERS = 20
_LEVELS = 3

_ENTRY = re.compile(rb"([0-7]{5,6}) ([^\0]+)\0(.{20})", re.DOTALL)

_RAW = re.compile(rb":(\d+ \d+ [0-9a-f]+ [0-9a-f]+) [A-Z]\0([^\0]+)\0")

# Entries in which two trees of somebody else may differ: a store has at most 1,000 segments.
MOST_ENTRIES = 10_000

# What `git diff-tree --stdin` repeats, because it names no tree.
_END = b".\n"

_HUNDRED = re.compile("[0-9]{2}", re.ASCII)


class TreeDifference(NamedTuple):
    """A path at which two trees differ: modes (ABSENT: nothing there) and objects."""

    old_mode: str
    new_mode: str
    old: str
    new: str
    path: str


def differences(
    folder: Path, old: str, new: str, *, prefix: str = "", recursive: bool = True
) -> Iterator[TreeDifference]:
    """The files that differ between two trees that lie at `prefix`, or only their entries."""
    options = [*["-r"] * recursive, *_OPTIONS]
    for paths in portions(folder, old, new, prefix) if recursive else [()]:
        with git_process.running(folder, "diff-tree", *options, old, new, *paths) as pipes:
            rest = b""
            while block := pipes.stdout.read(_BLOCK):
                rest += block
                end = 0
                for match in _RAW.finditer(rest):
                    yield _difference(match, prefix)
                    end = match.end()
                rest = rest[end:]


def introduced(folder: Path, commits: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The trees and files that the commits have and their parents have not, and where."""
    options = ("--root", "-m", "-r", "-t", "--no-commit-id", "--raw", "--no-abbrev", "--no-renames")
    for start in range(0, len(commits), _AT_ONCE):
        with git_process.running(folder, "diff-tree", "--stdin", *options, "-z") as pipes:
            lines = (f"{commit}\n" for commit in commits[start : start + _AT_ONCE])
            pipes.stdin.write("".join(lines).encode())
            pipes.stdin.close()
            rest = b""
            while block := pipes.stdout.read(_BLOCK):
                rest += block
                end = 0
                for match in _RAW.finditer(rest):
                    yield match[1].decode()[-40:], match[2].decode(errors="replace")
                    end = match.end()
                rest = rest[end:]


def portions(folder: Path, old: str, new: str, prefix: str = "") -> Iterator[Sequence[str]]:
    """What to give to `diff-tree` after two trees that lie at `prefix`, one piece after the other.

    Together it is all that differs; each is little enough for the memory. No paths: all at once.
    """
    differing = {"": (f"{old}^{{tree}}", f"{new}^{{tree}}")}
    for _ in range(_LEVELS - prefix.count("/")):
        differing = _step_down(folder, differing)
    paths = [f":(literal){path.rstrip('/')}" for path in differing]
    if len(paths) <= _FOLDERS:
        yield ()
    else:
        yield from (paths[start : start + _FOLDERS] for start in range(0, len(paths), _FOLDERS))


def _step_down(folder: Path, pairs: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """What differs in these pairs of trees: the trees, "" for none; the path of one ends with /."""
    is_open = {path: path.endswith("/") or not path for path in pairs}
    names = [name or EMPTY_TREE for path in pairs if is_open[path] for name in pairs[path]]
    trees = (_entries(folder, tree) for tree in contents(folder, names))
    below: dict[str, tuple[str, str]] = {}
    for path in pairs:
        if not is_open[path]:
            below[path] = pairs[path]
            continue
        before, after = next(trees), next(trees)
        for name in sorted(before.keys() | after.keys()):
            pair = before.get(name, ""), after.get(name, "")
            if pair[0] != pair[1]:
                below[path + name] = pair
    return below


def _entries(folder: Path, tree: bytes | None) -> dict[str, str]:
    """The objects in a tree by name; that of a folder ends with /."""
    if tree is None:
        raise git_process.GitFailed(f"{folder}: a tree is missing")
    return {
        os.fsdecode(name) + "/" * (mode == b"40000"): oid.hex()
        for mode, name, oid in _ENTRY.findall(tree)
    }


def _difference(match: re.Match[bytes], prefix: str) -> TreeDifference:
    path = prefix + match[2].decode(errors="replace")
    return TreeDifference._make((*match[1].decode().split(" "), path))


def few_differences(folder: Path, old: str, new: str) -> list[TreeDifference]:
    """The entries, each once, in which two trees differ; BadData if they are MOST_ENTRIES."""
    return _few(folder, differences(folder, old, new, recursive=False))


def _few(folder: Path, found: Iterator[TreeDifference]) -> list[TreeDifference]:
    entries = list(itertools.islice(found, MOST_ENTRIES))
    if len(entries) == MOST_ENTRIES:
        raise BadData(f"{folder}: a folder with {MOST_ENTRIES:,} entries: it is no store")
    # In a tree that no Git has made a name may stand again and again.
    return list({(entry.path, *entry[:2]): entry for entry in entries}.values())


def differences_in_segment(
    folder: Path, old: str, new: str, *, prefix: str
) -> Iterator[TreeDifference]:
    """As `differences`, of segments by somebody else: only folders where records may be are read.

    Trees that repeat and nest make billions of paths out of a few kB.
    """
    before, after = look_up(folder, [f"{old}^{{tree}}", f"{new}^{{tree}}"])
    both = TreeDifference(FOLDER, FOLDER, before or "", after or "", prefix)
    with git_process.running(folder, "diff-tree", "--stdin", *_OPTIONS) as pipes:
        yield from _below(folder, pipes, both, 2)


def _below(
    folder: Path, pipes: git_process.Pipes, parent: TreeDifference, levels: int
) -> Iterator[TreeDifference]:
    """What differs in two folders; so many `levels` of folders below them are entered."""
    found = _compared(folder, pipes, parent)
    if not levels:
        yield from found
        return
    for entry in _few(folder, found):
        modes = [entry.old_mode, entry.new_mode]
        name = entry.path.removeprefix(parent.path)
        if FOLDER not in modes or not _HUNDRED.fullmatch(name):
            yield entry
            continue
        old = entry.old if entry.old_mode == FOLDER else EMPTY_TREE
        new = entry.new if entry.new_mode == FOLDER else EMPTY_TREE
        inside = entry._replace(old=old, new=new, path=entry.path + "/")
        yield from _below(folder, pipes, inside, levels - 1)
        others = [ABSENT if mode == FOLDER else mode for mode in modes]
        if others != [ABSENT, ABSENT]:
            yield entry._replace(old_mode=others[0], new_mode=others[1])


def _compared(
    folder: Path, pipes: git_process.Pipes, parent: TreeDifference
) -> Iterator[TreeDifference]:
    """What differs in the next two trees that `diff-tree --stdin` is asked for."""
    pair = f"{parent.old} {parent.new}\n".encode()
    pipes.stdin.write(pair + _END)
    pipes.stdin.flush()
    if _unless_ended(pipes.stdout.readline()) != pair:
        raise BadData(f"{folder}: {parent.path}: a folder is missing or damaged: see git fsck")
    rest = b""
    while rest != _END:
        rest += _unless_ended(pipes.stdout.readline(_BLOCK), b"")
        end = 0
        for match in _RAW.finditer(rest):
            yield _difference(match, parent.path)
            end = match.end()
        rest = rest[end:]


def segments(folder: Path, revision: str, mode: str) -> dict[str, str]:
    """The paths (`releases/13`) of the segments that have this mode, and their objects."""
    command = ("ls-tree", "--full-tree", revision, *(f"{kind}/" for kind in KINDS))
    listing = git_process.run(folder, *command).decode(errors="replace")
    found = re.findall(rf"^{mode} \w+ ([0-9a-f]+)\t(\w+/(\w+))$", listing, re.MULTILINE)
    return {path: oid for oid, path, name in found if is_segment_name(name)}


def contents(folder: Path, names: Sequence[str]) -> Iterator[bytes | None]:
    """What the objects hold that `names` (`REV:path` or ids) stand for; None for what is not.

    For batches: the names are sent before the first answer is read.
    """
    stdin = "".join(f"{name}\n" for name in names).encode()
    if not stdin:
        return
    answer = io.BytesIO(git_process.run(folder, "cat-file", "--batch", stdin=stdin))
    for _ in names:
        what, data = next_object(answer)
        yield None if what == "missing" else data[:-1]


def next_object(stream: IO[bytes]) -> tuple[str, bytes]:
    """The type (or `missing`) of the object that `git cat-file` prints next, and what it holds.

    That ends with a line feed more. BrokenPipeError if Git has ended within: why is for `running`
    to find out.
    """
    header = _unless_ended(stream.readline()).decode(errors="replace").split()
    if header[-1] == "missing":
        return "missing", b""
    return header[1], _unless_ended(stream.read(int(header[2]) + 1))


def _unless_ended(read: bytes, end: bytes = b"\n") -> bytes:
    if not (read and read.endswith(end)):
        raise BrokenPipeError
    return read


def look_up(folder: Path, names: Sequence[str], *, network: bool = False) -> list[str | None]:
    """The objects that these names (`HEAD^{commit}`, `REVISION:releases`) mean; None: nothing."""
    if any("\n" in name or "\0" in name for name in names):
        return [None] * len(names)
    given = "".join(f"{name}\n" for name in names).encode()
    command = ("cat-file", "--batch-check=%(objectname) found")
    answers = git_process.run(folder, *command, stdin=given, network=network)
    lines = answers.decode(errors="replace").split("\n")[:-1]
    return [line.split()[0] if line.endswith(" found") else None for line in lines]


def contains(folder: Path, tip: str | None, revision: str) -> bool:
    """Whether commit `tip` is `revision` or one of its descendants."""
    if tip is None or tip == revision:
        return tip == revision
    command = ("merge-base", "--is-ancestor", revision, tip)
    done = git_process.call(folder, *command)
    if done.returncode not in (0, 1):
        raise git_process.failure(folder, command, done.returncode, done.stderr)
    return done.returncode == 0


def commits_between(
    folder: Path, old: str | None, new: str, at_most: int | None = None
) -> int | None:
    """How many commits `new` is ahead of `old` along first parents; None if one is unknown."""
    names = [f"{name}^{{commit}}" for name in (new, old) if name]
    if None in look_up(folder, names):
        return None
    limit = [] if at_most is None else [f"--max-count={at_most}"]
    selection = [new, f"^{old}"] if old else [new]
    return int(git_process.run(folder, "rev-list", "--count", "--first-parent", *limit, *selection))
