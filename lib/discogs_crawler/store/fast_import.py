"""From records to a commit: one `git fast-import` process a batch, without index and work tree.

Git's cost is the trees that a commit touches. A new process a batch keeps nothing in memory, its
exit status tells whether the branch has moved, and it moves a branch only forward: a process that
lives on answers every checkpoint and loses the commits of the slower of two writers in silence.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from discogs_crawler import clock
from discogs_crawler.store import stale_locks
from discogs_crawler.store.git import Author, GitFailed, Repository

# fast-import chains each blob to the one before, 50 deep: with 3 the store grows by 5 % and reads
# in random order are twice as fast.
DELTA_DEPTH = 3

FAST_IMPORT = ("fast-import", "--quiet", "--done", f"--depth={DELTA_DEPTH}")

# Git 2.39 begins the warning with a capital, 2.55 does not.
_REFUSED = re.compile(r"[Nn]ot updating|cannot lock ref")

_ENTRY = re.compile(rb"[0-7]{5,6} ([^\0]+)\0(.{20})", re.DOTALL)


class Refused(Exception):
    """The branch has moved on, or another process is moving it: do it again from its new tip."""


class Locked(Refused):
    """A lock file is in the way: of a process that is at work, or of one that was killed."""


class Entry(NamedTuple):
    """A file to write, or with neither `data` nor `oid` to remove."""

    path: str
    """"" is the root"""
    data: bytes | None
    oid: str = ""
    """an object that is there already"""
    mode: str = "100644"


def blob_id(data: bytes) -> bytes:
    """The 20 bytes by which Git knows a file with that content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).digest()


def stored(repository: Repository, base: str | None, paths: Iterable[str]) -> dict[str, bytes]:
    """The blob ids of those of `paths` that are in commit `base`.

    Reads one tree for each directory. Asking for each file would make a partial clone download
    the records, and takes three times as long for a batch of neighbours.
    """
    if base is None:
        return {}
    wanted = set(paths)
    folders = sorted({path.rpartition("/")[0] for path in wanted})
    stdin = "".join(f"{base}:{folder}\n" for folder in folders).encode()
    if not stdin:
        return {}
    answer = repository.run("cat-file", "--batch", stdin=stdin)
    found = {}
    for folder, tree in zip(folders, _bodies(answer), strict=True):
        for name, oid in _ENTRY.findall(tree):
            path = "/".join(filter(None, (folder, name.decode(errors="replace"))))
            if path in wanted:
                found[path] = oid
    return found


def _bodies(answer: bytes) -> Iterator[bytes]:
    """The contents in the answer of `cat-file --batch`, empty for what is missing."""
    position = 0
    while position < len(answer):
        end = answer.index(b"\n", position)
        header = answer[position:end]
        position = end + 1
        if header.endswith(b" missing"):
            yield b""
            continue
        size = int(header.rpartition(b" ")[2])
        yield answer[position : position + size]
        position += size + 1


def commit(
    repository: Repository,
    ref: str,
    base: str | None,
    entries: Iterable[Entry],
    message: str,
    author: Author,
    *,
    parents: Iterable[str] = (),
) -> str:
    """Put `entries` on commit `base` and move `ref` there; the new commit, synced to disk.

    `parents` are further ones. Raises Refused, and leaves the branch as it was, if the branch is
    not at `base` or an ancestor of it; Locked if another process, or a dead one, holds it.
    """
    with stale_locks.writing(repository) as lock:
        pieces = _stream(ref, base, entries, message, author, parents)
        done = repository.feed(*FAST_IMPORT, pieces=pieces, pass_fds=(lock,))
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        if "File exists" in said:
            raise Locked(said.splitlines()[0])
        if _REFUSED.search(said):
            raise Refused(said.splitlines()[0])
        raise repository.failure("fast-import", done.returncode, done.stderr)
    made = done.stdout.decode("ascii").strip()
    if not contains(repository, repository.tip(ref), made):
        raise GitFailed(f"{repository.path}: {ref} does not have the commit {made}", 0, "")
    return made


def contains(repository: Repository, tip: str | None, revision: str) -> bool:
    """Whether commit `tip` is `revision` or one of its descendants."""
    if tip is None or tip == revision:
        return tip == revision
    done = repository.call("merge-base", "--is-ancestor", revision, tip)
    if done.returncode not in (0, 1):
        raise repository.failure("merge-base", done.returncode, done.stderr)
    return done.returncode == 0


def _stream(
    ref: str,
    base: str | None,
    entries: Iterable[Entry],
    message: str,
    author: Author,
    parents: Iterable[str],
) -> Iterator[bytes]:
    text = message.encode()
    stamp = f"{author.name} <{author.email}> {int(clock.now())} +0000"
    yield f"commit {ref}\nmark :1\ncommitter {stamp}\ndata {len(text)}\n".encode() + text + b"\n"
    if base is not None:
        yield f"from {base}\n".encode()
    for parent in parents:
        yield f"merge {parent}\n".encode()
    for path, data, oid, mode in entries:
        if oid:
            yield f"M {mode} {oid} {path}\n".encode()
        elif data is None:
            yield f"D {path}\n".encode()
        else:
            yield f"M {mode} inline {path}\ndata {len(data)}\n".encode()
            yield data
            yield b"\n"
    yield b"\nget-mark :1\ndone\n"


def describe(subject: str, trailers: Mapping[str, str]) -> str:
    """A commit message: one line, then `Name: value` for each trailer that has a value."""
    lines = [f"{name}: {' '.join(value.split())}" for name, value in trailers.items() if value]
    return "\n".join([subject, "", *lines]).rstrip() + "\n"
