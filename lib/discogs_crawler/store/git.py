"""Git: one bare repository, its processes, and what their failures mean.

GitPython reads references and writes configuration. Everything that moves
records runs as a plain process of `git`, with an environment that no user's configuration and no
surrounding repository reaches.
"""

import contextlib
import errno
import functools
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from git import Repo, SymbolicReference
from git.exc import GitError

from discogs_crawler import locks, pipes
from discogs_crawler.errors import (
    EXIT_UNAVAILABLE,
    ConfigurationError,
    CrawlerError,
    Unavailable,
)
from discogs_crawler.store.history import FORMATS, SILENCE

log = logging.getLogger(__name__)

# `core.fsync` came with 2.36, `merge-tree --write-tree` with 2.38.
OLDEST_GIT = (2, 38)

# How often it is looked whether a remote is still to be waited for.
LOOK_S = 0.2

# How long a process may take to end when asked to.
KINDLY_S = 1

# What the machine is short of now, and may have again later.
_PASSING = (errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EIO)

# By default Git syncs neither loose objects nor references, collects garbage whenever it likes
# (which breaks writers beside it), and makes loose files of small imports.
CONFIGURATION = {
    "core.fsync": "all",
    "core.logAllRefUpdates": "true",
    "core.hooksPath": os.devnull,
    "gc.auto": "0",
    "maintenance.auto": "false",
    "receive.autogc": "false",
    "receive.denyNonFastForwards": "true",
    "fastimport.unpackLimit": "1",
    "fetch.unpackLimit": "1",
    "receive.unpackLimit": "1",
    "uploadpack.allowFilter": "true",
    "uploadpack.allowAnySHA1InWant": "true",
}

# What `git rev-parse --local-env-vars` lists: variables that point Git at another repository.
_POINTERS = re.compile(
    r"GIT_(ALTERNATE_OBJECT_DIRECTORIES|CONFIG|CONFIG_PARAMETERS|CONFIG_COUNT|OBJECT_DIRECTORY|DIR"
    r"|WORK_TREE|IMPLICIT_WORK_TREE|GRAFT_FILE|INDEX_FILE|NO_REPLACE_OBJECTS|REPLACE_REF_BASE"
    r"|PREFIX|SHALLOW_FILE|COMMON_DIR|NAMESPACE|(AUTHOR|COMMITTER)_(NAME|EMAIL|DATE))"
)

_ISOLATION = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}

_FULL = re.compile(r"No space left on device|Out of diskspace|Disk quota exceeded|File too large")
_DENIED = re.compile(r"Permission denied|Read-only file system|Operation not permitted")


class Author(NamedTuple):
    """Who signs the commits."""

    name: str
    email: str


class GitFailed(CrawlerError):
    """A `git` process ended with an error that we know no better name for."""

    exit_code = EXIT_UNAVAILABLE

    def __init__(self, message: str, status: int, stderr: str) -> None:
        super().__init__(message)
        self.status = status
        self.stderr = stderr


def environment(*, network: bool = False) -> dict[str, str]:
    """The environment of a `git` process.

    Talking to a remote needs the user's proxies, certificates and credential helpers; nothing
    else may depend on them.
    """
    kept = {name: text for name, text in os.environ.items() if not _POINTERS.fullmatch(name)}
    kept |= {"LC_ALL": "C", "LANGUAGE": "C", "GIT_TERMINAL_PROMPT": "0"} | FORMATS
    return SILENCE | kept if network else kept | _ISOLATION


class Repository:
    """A bare repository. Its methods may be called by several threads and processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode = self._find_inode()

    def replaced(self) -> bool:
        """Whether another repository lies at our path by now."""
        return self._inode != self._find_inode()

    def _find_inode(self) -> int:
        try:
            return self.path.stat().st_ino
        except OSError:
            return 0

    def __repr__(self) -> str:
        return f"Repository({str(self.path)!r})"

    def tip(self, ref: str) -> str | None:
        """The commit that `ref` (`refs/heads/main`) names, None if there is none."""
        with self._explained(), Repo(self.path) as repo:
            try:
                return SymbolicReference.dereference_recursive(repo, ref)
            except ValueError:
                return None

    def refs(self, prefix: str) -> dict[str, str]:
        """The references whose full names start with `prefix`, and the objects they name."""
        listing = self.run("for-each-ref", "--format=%(objectname) %(refname)", prefix)
        lines = listing.decode(errors="replace").split("\n")[:-1]
        return {name: oid for oid, name in (line.split(" ", 1) for line in lines)}

    def configure(self, values: Mapping[str, str]) -> None:
        """Set `section.option` or `section.sub.option` in the repository's own configuration."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._explained())
            lock = self.path / "configuration.flock"
            stack.enter_context(locks.exclusive(lock, "configuring", wait=True))
            # Git's own lock on the file can then only be that of a process that was killed.
            (self.path / "config.lock").unlink(missing_ok=True)
            writer = stack.enter_context(stack.enter_context(Repo(self.path)).config_writer())
            for name, value in values.items():
                section, option = name.rsplit(".", 1)
                head, _, sub = section.partition(".")
                writer.set_value(f'{head} "{sub}"' if sub else head, option, value)

    def configured(self, section: str, option: str) -> str:
        """A value of the repository's own configuration, "" if it is not set."""
        with self._explained(), Repo(self.path) as repo:
            return str(repo.config_reader("repository").get_value(section, option, ""))

    def check_branch(self, branch: str) -> None:
        """ConfigurationError if the records are on another branch; an empty one takes this."""
        with self._explained():
            head = (self.path / "HEAD").read_text("utf-8").strip()
        named = head.removeprefix("ref: refs/heads/")
        if named == branch:
            return
        if self.tip("HEAD"):
            raise ConfigurationError(
                f"{self.path}: its branch is {named}: set STORE_BRANCH={named}, or rename it: "
                f"git --git-dir={self.path} branch -m {named} {branch}"
            )
        self.run("symbolic-ref", "HEAD", f"refs/heads/{branch}")

    def run(
        self, *arguments: str, stdin: bytes = b"", extra: Mapping[str, str] | None = None
    ) -> bytes:
        """What `git ARGUMENTS` prints. Raises what `failure` makes of an exit status but 0."""
        done = self.call(*arguments, stdin=stdin, extra=extra)
        if done.returncode:
            raise self.failure(arguments[0], done.returncode, done.stderr)
        return done.stdout

    def call(
        self,
        *arguments: str,
        stdin: bytes = b"",
        extra: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run `git ARGUMENTS` to its end, whatever that is."""
        return subprocess.run(
            self._command(arguments),
            input=stdin,
            capture_output=True,
            env=environment() | dict(extra or {}),
            check=False,
        )

    def feed(
        self, *arguments: str, pieces: Iterable[bytes], pass_fds: Sequence[int] = ()
    ) -> "subprocess.CompletedProcess[bytes]":
        """The same with an input that is made piece by piece; the answer must be short."""
        with subprocess.Popen(
            self._command(arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            pass_fds=pass_fds,
            bufsize=pipes.ROOM_B,
        ) as running:
            try:
                with contextlib.suppress(BrokenPipeError):  # its exit status says why
                    cast(IO[bytes], running.stdin).writelines(pieces)
                stdout, stderr = running.communicate()
            except BaseException:
                running.kill()
                raise
        return subprocess.CompletedProcess(arguments, running.returncode, stdout, stderr)

    def talk(
        self, *arguments: str, extra: Mapping[str, str], is_given_up: Callable[[], bool]
    ) -> "subprocess.CompletedProcess[bytes] | None":
        """Run a `git` that talks to a remote; None if it was ended because `is_given_up`.

        It is the first of a session, away from the terminal: Ctrl-C is for us to judge, and its
        helpers (ssh, curl) end with it.
        """
        if is_given_up():
            return None
        with subprocess.Popen(
            self._command(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(network=True) | dict(extra),
            start_new_session=True,
        ) as running:
            try:
                while True:
                    try:
                        stdout, stderr = running.communicate(timeout=LOOK_S)
                    except subprocess.TimeoutExpired:
                        if is_given_up():
                            return None
                    else:
                        status = running.returncode
                        return subprocess.CompletedProcess(arguments, status, stdout, stderr)
            finally:
                if running.poll() is None:
                    _end_session(running)

    @contextlib.contextmanager
    def process(self, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A `git` process to talk to; leaving the block early kills it.

        Raises what `failure` makes of its exit status when the block was left in order.
        """
        with subprocess.Popen(
            self._command(arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        ) as running:
            try:
                yield running
                _, stderr = running.communicate()
            except BaseException:
                running.kill()
                raise
        if running.returncode:
            raise self.failure(arguments[0], running.returncode, stderr)

    def lines(self, *arguments: str, end: bytes = b"\0") -> Iterator[bytes]:
        """The records that `git ARGUMENTS` prints, ended by `end`, as they come."""
        with self.process(*arguments) as running:
            yield from split_stream(cast(IO[bytes], running.stdout), end)

    def failure(self, command: str, status: int, stderr: bytes) -> CrawlerError:
        """The error that an exit status and the text on stderr stand for, in one line."""
        text = stderr.decode("utf-8", "replace").strip()
        if _FULL.search(text) or status == -25:  # SIGXFSZ
            return Unavailable(f"{self.path}: no space left to write; free some and run it again")
        if _DENIED.search(text):
            return ConfigurationError(f"{self.path}: cannot be written: {_last_line(text)}")
        if not (self.path / "objects").is_dir():
            return ConfigurationError(f"{self.path}: there is no repository here")
        said = _last_line(text) or "it said nothing"
        return GitFailed(f"{self.path}: git {command} failed ({status}): {said}", status, text)

    def _command(self, arguments: Sequence[str]) -> list[str]:
        # Naming the folder also keeps Git from asking whose it is.
        return ["git", f"--git-dir={self.path}", *arguments]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (GitError, OSError) as error:
            raise self.failure("config", 128, _text(error).encode()) from error


def _end_session(leader: "subprocess.Popen[bytes]") -> None:
    """End a process and its helpers; Git removes its locks if it is asked kindly."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            leader.wait(KINDLY_S)


def _text(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error)) or type(error).__name__


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("fast-import: dumping")]
    return lines[-1].strip() if lines else ""


def split_stream(stream: IO[bytes], end: bytes, block: int = 1 << 18) -> Iterator[bytes]:
    """The records in `stream` that `end` ends, without it."""
    rest = b""
    while data := stream.read(block):
        *whole, rest = (rest + data).split(end)
        yield from whole
    if rest:
        yield rest


def create(path: Path, branch: str, layout: str) -> Repository:
    """The repository at `path`, made with our CONFIGURATION if there is none.

    It is made under another name and renamed, so that one that is there is whole. `layout` tells
    what it is: `single`, `submodules` for the superproject, `segment` for one of its parts.
    """
    check_version()
    if (path / "HEAD").exists():
        return Repository(path)
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = ["git", "init", "--quiet", "--bare", "--template="]
        command += [f"--initial-branch={branch}", str(made)]
        subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        Repository(made).configure(CONFIGURATION | {"crawler.layout": layout})
        made.rename(path)
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(made, ignore_errors=True)
        # Somebody else may have made it at the same time.
        if not (path / "HEAD").exists():
            reason = _last_line(getattr(error, "stderr", "") or _text(error))
            raised = Unavailable if _is_passing(error) else ConfigurationError
            raise raised(f"{path}: cannot be made: {reason}") from error
    return Repository(path)


def _is_passing(error: OSError | subprocess.CalledProcessError) -> bool:
    """Whether the machine is only short of something now: then processes are killed, too."""
    if isinstance(error, OSError):
        return error.errno in _PASSING
    return error.returncode < 0


@functools.cache
def check_version() -> None:
    """ConfigurationError if there is no `git`, or one that is too old."""
    try:
        said = subprocess.run(["git", "version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        if _is_passing(error):
            raise Unavailable(f"git cannot be run: {_text(error)}") from error
        raise ConfigurationError("no git found: install it (Debian: apt install git)") from None
    match = re.search(r"(\d+)\.(\d+)", said)
    if match is None or (int(match[1]), int(match[2])) < OLDEST_GIT:
        oldest = ".".join(map(str, OLDEST_GIT))
        raise ConfigurationError(f"{said.strip()} is too old: {oldest} is the oldest that works")


def read_blobs(repository: Repository, names: Iterable[str]) -> Iterator[bytes | None]:
    """The blobs that `names` (`REV:path` or ids) stand for, in that order; None for what is not.

    For batches: the names are sent before the first answer is read.
    """
    stdin = "".join(f"{name}\n" for name in names).encode()
    if not stdin:
        return
    answer = memoryview(repository.run("cat-file", "--batch", stdin=stdin))
    position = 0
    while position < len(answer):
        end = position + bytes(answer[position : position + 400]).index(b"\n")
        header = bytes(answer[position:end]).split()
        position = end + 1
        if header[-1] == b"missing":
            yield None
            continue
        size = int(header[-1])
        yield bytes(answer[position : position + size])
        position += size + 1
