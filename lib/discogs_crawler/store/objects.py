"""Read Git's objects: what names stand for, what differs between two trees, what files contain."""

import hashlib
import io
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from discogs_crawler.errors import BadData
from discogs_crawler.records import KINDS, is_segment_name
from discogs_crawler.store import git_process

# The name of the tree without entries, which every Git knows: the state before the first commit.
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

# The trailer of commits that change records without a change at Discogs: of `maintain_store.py
# --reclean`.
TECHNICAL = "Technical"

# Modes of the entries of a tree; ABSENT: there is no entry.
FILE = "100644"
FOLDER = "040000"
GITLINK = "160000"
ABSENT = "000000"

# Mode, name and object of each entry of a tree.
TREE_ENTRY = re.compile(rb"([0-7]{5,6}) ([^\0]+)\0(.{20})", re.DOTALL)

# Entries of a tree in a foreign store; ours has at most 1,000 segments.
MOST_ENTRIES = 10_000

# Commits that are sent to Git before its first answer is read: as many as fit into a pipe.
_AT_ONCE = 500

# Bytes per read.
_BLOCK = 1 << 18

# Folders of 10,000 ids that are compared at once: `diff-tree` collects all differences, 330 bytes
# per file, before it prints the first: 66 MB. Such a folder is 3 levels below the root.
_FOLDERS = 20
_LEVELS = 3

_OPTIONS = ("--raw", "--no-abbrev", "--no-renames", "-z")
_RAW = re.compile(rb":(\d+ \d+ [0-9a-f]+ [0-9a-f]+) [A-Z]\0([^\0]+)\0")

# A line that names no tree. `git diff-tree --stdin` prints it back: it marks the end of an answer.
_END = b".\n"

_HUNDRED = re.compile("[0-9]{2}", re.ASCII)


class TreeDifference(NamedTuple):
    """A path at which two trees differ: the modes (see ABSENT) and the objects there."""

    old_mode: str
    new_mode: str
    old: str
    new: str
    path: str


def blob_id(data: bytes) -> bytes:
    """Return the 20 bytes that name a file with this content in Git."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).digest()


def differences(folder: Path, old: str, new: str, *, prefix: str = "") -> Iterator[TreeDifference]:
    """Yield the files that differ between two trees whose path in the store is `prefix`."""
    for paths in portions(folder, old, new, prefix):
        yield from _diff_tree(folder, prefix, "-r", old, new, *paths)


def _diff_tree(folder: Path, prefix: str, *arguments: str) -> Iterator[TreeDifference]:
    with git_process.running(folder, "diff-tree", *_OPTIONS, *arguments) as pipes:
        for match in _raw(pipes.stdout.read):
            yield _difference(match, prefix)


def _raw(read: Callable[[int], bytes], end: bytes | None = None) -> Iterator[re.Match[bytes]]:
    """Yield the differences that `diff-tree` prints, until `end` or the end of the stream.

    BrokenPipeError if there is an `end` and the stream ends before it.
    """
    rest = b""
    while rest != end and (block := read(_BLOCK)):
        rest += block
        stop = 0
        for match in _RAW.finditer(rest):
            yield match
            stop = match.end()
        rest = rest[stop:]
    if end is not None and rest != end:
        raise BrokenPipeError


def _difference(match: re.Match[bytes], prefix: str) -> TreeDifference:
    path = prefix + match[2].decode(errors="replace")
    return TreeDifference._make((*match[1].decode().split(" "), path))


def introduced(folder: Path, commits: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield object and path of each tree and file that a commit has and its parents do not."""
    options = ("--stdin", "--root", "-m", "-r", "-t", "--no-commit-id", *_OPTIONS)
    for start in range(0, len(commits), _AT_ONCE):
        with git_process.running(folder, "diff-tree", *options) as pipes:
            lines = (f"{commit}\n" for commit in commits[start : start + _AT_ONCE])
            pipes.stdin.write("".join(lines).encode())
            pipes.stdin.close()
            for match in _raw(pipes.stdout.read):
                yield match[1].decode()[-40:], match[2].decode(errors="replace")


def portions(folder: Path, old: str, new: str, prefix: str = "") -> Iterator[Sequence[str]]:
    """Yield the paths to give to one `diff-tree` of these trees after the other.

    Together they cover all differences, and the memory that each run needs is bounded. Without
    paths one run compares everything. `prefix` is the path of the trees in the store.
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
    """Return what differs one level below these pairs of trees, by path.

    The path of a tree ends with /, except that of the root. "" stands for a missing object.
    """
    is_tree = {path: path.endswith("/") or not path for path in pairs}
    names = [name or EMPTY_TREE for path in pairs if is_tree[path] for name in pairs[path]]
    trees = (_entries(folder, tree) for tree in contents(folder, names))
    below: dict[str, tuple[str, str]] = {}
    for path in pairs:
        if not is_tree[path]:
            below[path] = pairs[path]
            continue
        before, after = next(trees), next(trees)
        for name in sorted(before.keys() | after.keys()):
            pair = before.get(name, ""), after.get(name, "")
            if pair[0] != pair[1]:
                below[path + name] = pair
    return below


def _entries(folder: Path, tree: bytes | None) -> dict[str, str]:
    """Return the objects in a tree by name; the names of folders end with /."""
    if tree is None:
        raise git_process.GitFailed(f"{folder}: a tree is missing")
    return {
        os.fsdecode(name) + "/" * (mode == b"40000"): oid.hex()
        for mode, name, oid in TREE_ENTRY.findall(tree)
    }


def few_differences(folder: Path, old: str, new: str) -> list[TreeDifference]:
    """Return the entries in which two trees differ; BadData for MOST_ENTRIES or more."""
    return _few(folder, _diff_tree(folder, "", old, new))


def _few(folder: Path, found: Iterator[TreeDifference]) -> list[TreeDifference]:
    entries = list(itertools.islice(found, MOST_ENTRIES))
    if len(entries) == MOST_ENTRIES:
        raise BadData(f"{folder}: a folder with {MOST_ENTRIES:,} entries: this is not a store")
    # A tree that was not made by Git may have a name several times.
    return list({(entry.path, *entry[:2]): entry for entry in entries}.values())


def differences_in_segment(
    folder: Path, old: str, new: str, *, prefix: str
) -> Iterator[TreeDifference]:
    """Yield the same as `differences`, of segments of a foreign store, which may be malicious.

    Trees that repeat and nest make billions of paths out of a few kB, so only folders in which
    records may be are read. BadData if a folder is missing or has too many entries.
    """
    before, after = look_up(folder, [f"{old}^{{tree}}", f"{new}^{{tree}}"])
    if not before or not after:  # to an empty name Git would answer as if nothing differed
        raise _damaged(folder, prefix)
    both = TreeDifference(FOLDER, FOLDER, before, after, prefix)
    with git_process.running(folder, "diff-tree", "--stdin", *_OPTIONS) as pipes:
        yield from _below(folder, pipes, both, 2)


def _below(
    folder: Path, pipes: git_process.Pipes, parent: TreeDifference, levels: int
) -> Iterator[TreeDifference]:
    """Yield what differs in two folders and in `levels` levels of folders below them."""
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
        # A folder became a file, or a file a folder: the file differs, too.
        others = [ABSENT if mode == FOLDER else mode for mode in modes]
        if others != [ABSENT, ABSENT]:
            yield entry._replace(old_mode=others[0], new_mode=others[1])


def _compared(
    folder: Path, pipes: git_process.Pipes, parent: TreeDifference
) -> Iterator[TreeDifference]:
    """Ask `diff-tree --stdin` to compare the two trees of `parent`, and yield its answer."""
    pair = f"{parent.old} {parent.new}\n".encode()
    pipes.stdin.write(pair + _END)
    pipes.stdin.flush()
    if _unless_ended(pipes.stdout.readline()) != pair:
        raise _damaged(folder, parent.path)
    for match in _raw(pipes.stdout.readline, _END):
        yield _difference(match, parent.path)


def _damaged(folder: Path, path: str) -> BadData:
    return BadData(f"{folder}: {path}: a folder is missing or damaged: see git fsck")


def segments(folder: Path, revision: str, mode: str) -> dict[str, str]:
    """Return the objects of the segments that have this mode, by path (`releases/13`)."""
    command = ("ls-tree", "--full-tree", revision, *(f"{kind}/" for kind in KINDS))
    listing = git_process.run(folder, *command).decode(errors="replace")
    found = re.findall(rf"^{mode} \w+ ([0-9a-f]+)\t(\w+/(\w+))$", listing, re.MULTILINE)
    return {path: oid for oid, path, name in found if is_segment_name(name)}


def contents(folder: Path, names: Sequence[str]) -> Iterator[bytes | None]:
    """Yield the content of the object that each name (`REV:path` or id) stands for; None: none.

    All answers are in memory at once, so names should come in batches.
    """
    stdin = "".join(f"{name}\n" for name in names).encode()
    if not stdin:
        return
    answer = io.BytesIO(git_process.run(folder, "cat-file", "--batch", stdin=stdin))
    for _ in names:
        what, data = next_object(answer)
        yield None if what == "missing" else data[:-1]


def next_object(stream: IO[bytes]) -> tuple[str, bytes]:
    """Return type (or `missing`) and content of the next object that `git cat-file` prints.

    Git adds a line feed to the content. BrokenPipeError if Git ended before: `running` then finds
    out why.
    """
    header = _unless_ended(stream.readline()).decode(errors="replace").split()
    if header[-1] == "missing":
        return "missing", b""
    return header[1], _unless_ended(stream.read(int(header[2]) + 1))


def _unless_ended(read: bytes) -> bytes:
    """Return what was read; BrokenPipeError if its last line is not complete."""
    if not read.endswith(b"\n"):
        raise BrokenPipeError
    return read


def look_up(folder: Path, names: Sequence[str]) -> list[str | None]:
    """Return the object that each name (`HEAD^{commit}`, `REVISION:releases`) means; None: none."""
    if any("\n" in name or "\0" in name for name in names):
        return [None] * len(names)
    given = "".join(f"{name}\n" for name in names).encode()
    command = ("cat-file", "--batch-check=%(objectname) found")
    answers = git_process.run(folder, *command, stdin=given)
    lines = answers.decode(errors="replace").split("\n")[:-1]
    return [line.split()[0] if line.endswith(" found") else None for line in lines]


def contains(folder: Path, tip: str | None, revision: str) -> bool:
    """Whether commit `tip` is `revision` or a descendant of it."""
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
    """Return the number of commits from `old` to `new` along first parents, up to `at_most`.

    None if one of the two is unknown. Without `old`, all commits up to `new` count.
    """
    names = [f"{name}^{{commit}}" for name in (new, old) if name]
    if None in look_up(folder, names):
        return None
    limit = [] if at_most is None else [f"--max-count={at_most}"]
    selection = [new, f"^{old}"] if old else [new]
    return int(git_process.run(folder, "rev-list", "--count", "--first-parent", *limit, *selection))
