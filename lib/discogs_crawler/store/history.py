"""Read the store's history: revisions, and the stretches of records that differ between two.

A store has one of two layouts with the same paths: one repository, or a superproject that pins one
repository for each kind and million. Both come out as segments: a pair of trees with the path at
which they lie. Comparing segment by segment also bounds the memory of `git diff-tree`, which
holds all that differs (360 bytes a record) before it prints the first.

Nothing here imports GitPython, which takes longer to load (0.3 s) than most exports to run.
"""

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from discogs_crawler import pipes
from discogs_crawler.errors import BadData, ConfigurationError, Unavailable
from discogs_crawler.records import KINDS, is_segment_name

# The name that every Git knows for a tree without entries: what there was before the first commit.
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

# Put by `maintain_store.py --reclean` on commits that change records without a change at Discogs.
TECHNICAL = "Technical"

# How long a process takes at most to be gone once it has closed its end of a pipe.
GOING_S = 2

# How long a remote over http may be silent, in seconds, unless the user's environment says it: a
# connection that died without a word (a router began anew) is not waited for without end. While a
# server of Git thinks, it sends 5 bytes every 5 seconds.
SILENCE = {"GIT_HTTP_LOW_SPEED_LIMIT": "1", "GIT_HTTP_LOW_SPEED_TIME": "900"}

# Modes of what is in a tree.
FILE = "100644"
ABSENT = "000000"
_FOLDER = "040000"
_GITLINK = "160000"

# The formats that Git 3 makes only if told to. EMPTY_TREE is of the one, GitPython reads the other.
FORMATS = {"GIT_DEFAULT_HASH": "sha1", "GIT_DEFAULT_REF_FORMAT": "files"}

_ENTRY = re.compile(r":(\d+) (\d+) ([0-9a-f]+) ([0-9a-f]+) [A-Z]\t(.+)\n")


class Source(NamedTuple):
    """A repository to read: its Git folder, the ref that is its tip, and how to call it.

    If it is `foreign`, nobody knows who wrote it: what is in it may be anything.
    """

    folder: Path
    tip: str
    name: str
    foreign: bool = False


class Stretch(NamedTuple):
    """Two commits (or the empty tree) of the store whose difference is to be exported."""

    old: str
    new: str


class Segment(NamedTuple):
    """Two trees, and the path in the store at which they lie, e.g. `releases/13/`."""

    folder: Path
    prefix: str
    old: str
    new: str


class LeftOut:
    """What lies in a store where records do and is none: the number, and the first of them."""

    def __init__(self) -> None:
        self.number = 0
        self.first = ""

    def add(self, path: str) -> None:
        self.number += 1
        self.first = self.first or path


class _Entry(NamedTuple):
    """What differs between two trees under one name, quoted by Git if it is odd."""

    old_mode: str
    new_mode: str
    old: str
    new: str
    name: str


def environment() -> dict[str, str]:
    """The environment of a Git that reads: ours, without what would lead it elsewhere."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    kept = ("GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS", "GIT_EXEC_PATH", "GIT_SSL_CAINFO")
    ours |= {name: os.environ[name] for name in (*kept, *SILENCE) if name in os.environ}
    fixed = {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_REPLACE_OBJECTS": "1"}
    return SILENCE | ours | fixed | FORMATS


class Pipes(NamedTuple):
    """The two ends of a running Git."""

    stdin: IO[bytes]
    stdout: IO[bytes]


@contextlib.contextmanager
def running(folder: Path, *arguments: str, codes: Collection[int] = (0,)) -> Iterator[Pipes]:
    """Run Git in the repository `folder` during the block; it is killed if the block fails.

    BadData with Git's last words if it ends with a code that is not in `codes`; Unavailable if it
    was killed.
    """
    with tempfile.TemporaryFile() as words:
        process = _started(["git", "--git-dir", str(folder), *arguments], words)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Pipes(process.stdin, process.stdout)
            _close(process)
            code: int | None = process.wait()
        except BrokenPipeError:
            if not _has_gone(process):  # it was another one's pipe
                process.kill()
                process.wait()
                raise
            # It went before it had read everything, and its last words say why.
            code = process.returncode or None
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            _close(process)
        if code not in codes:
            words.seek(0)
            said = _last_words(words.read(), code)
            raised = Unavailable if code is not None and code < 0 else BadData
            raise raised(f"{folder}: git {_command(arguments)}: {said}")


def _has_gone(process: "subprocess.Popen[bytes]") -> bool:
    try:
        process.wait(GOING_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _command(arguments: Sequence[str]) -> str:
    """The name of the command in the arguments of Git, behind `-c NAME=VALUE`."""
    return arguments[0] if arguments[0] != "-c" else _command(arguments[2:])


def _started(command: Sequence[str], words: IO[bytes]) -> "subprocess.Popen[bytes]":
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            env=environment(),
            bufsize=pipes.ROOM_B,
        )
    except FileNotFoundError:
        raise ConfigurationError("there is no git on the PATH; install it") from None
    except OSError as error:
        raise Unavailable(f"git cannot be started: {error.strerror}") from error
    # For Git to run ahead of us, and we of it, without a change of processes for each record.
    pipes.widen(cast(IO[bytes], process.stdout), cast(IO[bytes], process.stdin))
    return process


def _close(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):
            cast(IO[bytes], pipe).close()


def _last_words(words: bytes, code: int | None) -> str:
    lines = words.decode(errors="replace").split("\n")
    said = [line for line in lines if line.startswith(("fatal:", "error:"))]
    if code is not None and code < 0:
        said.insert(0, f"killed by signal {-code}")
    return said[0] if said else f"ended early ({code})"


def output(folder: Path, *arguments: str, given: bytes = b"", codes: Collection[int] = (0,)) -> str:
    """What Git prints in the repository `folder`, given little enough to fit into a pipe."""
    with running(folder, *arguments, codes=codes) as pipes:
        pipes.stdin.write(given)
        pipes.stdin.close()
        return pipes.stdout.read().decode(errors="replace")


def look_up(folder: Path, names: Sequence[str]) -> list[str | None]:
    """The objects that these names (`HEAD^{commit}`, `REVISION:releases`) mean; None: nothing."""
    if any("\n" in name or "\0" in name for name in names):
        return [None] * len(names)
    given = "".join(f"{name}\n" for name in names).encode()
    answers = output(folder, "cat-file", "--batch-check=%(objectname) found", given=given)
    lines = answers.splitlines()
    return [line.split()[0] if line.endswith(" found") else None for line in lines]


def tip_of(source: Source) -> str | None:
    """The commit that readers may read up to; None as long as there is none."""
    return look_up(source.folder, [f"{source.tip}^{{commit}}"])[0]


def is_ancestor(folder: Path, old: str, new: str) -> bool:
    """Whether `new` was made from `old`; so it is unless history was written anew."""
    return not output(folder, "rev-list", "--max-count=1", old, f"^{new}")


def commits_between(folder: Path, old: str | None, new: str | None) -> int | None:
    """How many commits `new` is ahead of `old` along first parents; None if one is unknown."""
    if new is None or (old is not None and look_up(folder, [f"{old}^{{commit}}"])[0] is None):
        return None
    selection = [new, f"^{old}"] if old else [new]
    return int(output(folder, "rev-list", "--count", "--first-parent", *selection))


def commits(folder: Path, old: str, new: str) -> Iterator[tuple[str, bool]]:
    """Each commit after `old` along first parents up to `new`, and whether it is technical."""
    selection = [new] if old == EMPTY_TREE else [new, f"^{old}"]
    layout = f"--format=%H %(trailers:key={TECHNICAL},valueonly,unfold,separator=%x2C)"
    arguments = ["rev-list", "--first-parent", "--reverse", "--no-commit-header", layout]
    with running(folder, *arguments, *selection) as pipes:
        for line in pipes.stdout:
            revision, _, technical = line.decode(errors="replace").rstrip("\n").partition(" ")
            yield revision, bool(technical)


def nth_commit(folder: Path, old: str, new: str, count: int) -> str:
    """The commit `count` commits after `old` along first parents; `new` if there are fewer."""
    for number, (revision, _) in enumerate(commits(folder, old, new), 1):
        if number == count:
            return revision
    return new


def stretches(folder: Path, old: str, new: str, *, skip_technical: bool) -> Iterator[Stretch]:
    """What lies between two revisions: one piece, or those between the technical commits."""
    if not skip_technical:
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


def segments(
    folder: Path, stretch: Stretch, kinds: Sequence[str], left_out: LeftOut
) -> Iterator[Segment]:
    """The segments that differ between the two ends, in the order of their paths."""
    for kind in _entries(folder, *stretch):
        if kind.name not in KINDS:
            if kind.new_mode not in (FILE, ABSENT):
                left_out.add(kind.name)
        elif kind.name in kinds:
            if kind.new_mode not in (_FOLDER, ABSENT):
                left_out.add(kind.name)
            trees = (_tree(kind.old_mode, kind.old), _tree(kind.new_mode, kind.new))
            for entry in _entries(folder, *trees):
                yield from _segment(folder, kind.name, entry, left_out)


def _entries(folder: Path, old: str, new: str) -> Iterator[_Entry]:
    listing = output(folder, "diff-tree", "--raw", "--no-abbrev", "--no-renames", old, new)
    return (_Entry(*match.groups()) for match in _ENTRY.finditer(listing))


def _tree(mode: str, oid: str, *, wanted: str = _FOLDER) -> str:
    return oid if mode == wanted else EMPTY_TREE


def _segment(folder: Path, kind: str, entry: _Entry, left_out: LeftOut) -> Iterator[Segment]:
    path = f"{kind}/{entry.name}"
    modes = {entry.old_mode, entry.new_mode} & {_FOLDER, _GITLINK}
    is_one = is_segment_name(entry.name)
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
    where = submodule_folder(folder, path) if mode == _GITLINK else folder
    old = _tree(entry.old_mode, entry.old, wanted=mode)
    new = _tree(entry.new_mode, entry.new, wanted=mode)
    yield Segment(where, path + "/", old, new)


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
