"""Run Git: its environment, its pipes, and what its errors mean.

Nothing here imports GitPython, which takes longer to load (0.3 s) than most exports take to run.
"""

import contextlib
import functools
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from discogs_crawler import files
from discogs_crawler.errors import (
    EXIT_UNAVAILABLE,
    ConfigurationError,
    CrawlerError,
    Unavailable,
)
from discogs_crawler.store import git_memory

# `core.fsync` came with 2.36, `merge-tree --write-tree` with 2.38.
OLDEST_GIT = (2, 38)

# fast-import chains each blob to the one before, 50 deep: with 3 the store grows by 5 % and random
# reads are twice as fast.
DELTA_DEPTH = 3
FAST_IMPORT = ("fast-import", "--quiet", "--done", f"--depth={DELTA_DEPTH}")

# The most that is read of the complaints of a Git.
MOST_WORDS_B = 1 << 20

# Seconds that a remote has for a question; _SSH gives up a machine that is not there in 20.
ASK_S = 30

# Without the last two options a dead connection is noticed only after hours.
_SSH = (
    "ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=30 -o ServerAliveCountMax=4"
)

# Seconds between two checks whether to go on waiting for a remote.
LOOK_S = 0.2

# Seconds that a process gets to end when asked to.
KINDLY_S = 1

# Seconds that a process takes at most to end after it has closed its end of a pipe.
GOING_S = 2

# Seconds that a remote over http may be silent, unless the user's environment sets them: otherwise
# Git would wait for ever after a router restarts. A busy Git server sends 5 bytes every 5 seconds.
SILENCE = {"GIT_HTTP_LOW_SPEED_LIMIT": "1", "GIT_HTTP_LOW_SPEED_TIME": "900"}

# The user's variables for connections and traces. Every other variable of Git could lead to another
# repository, another author or other rules.
_KEPT = re.compile(
    r"GIT_(SSH|SSL|HTTP|PROXY|CURL|TRACE|ASKPASS|EXEC_PATH|ALLOW_PROTOCOL"
    r"|CONFIG_(GLOBAL|SYSTEM|NOSYSTEM)$)"
)
# Git 3 has other defaults for the last two: EMPTY_TREE is a SHA-1, and GitPython reads only files.
_FIXED = {
    "LC_ALL": "C",
    "LANGUAGE": "C",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_DEFAULT_HASH": "sha1",
    "GIT_DEFAULT_REF_FORMAT": "files",
}
_ISOLATION = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}

_FULL = re.compile(r"No space left on device|Out of diskspace|Disk quota exceeded|File too large")
_DENIED = re.compile(r"Permission denied|Read-only file system|Operation not permitted")
_COMPLAINTS = ("fatal:", "error:", "!", "remote: error")

# The most lines of a remote's own that are told, e.g. of a hook.
_ITS_LINES = 3

# The second form is for URLs within a text, where white space ends them.
_LOGIN = re.compile(r"^([a-z][a-z0-9+.-]*://)[^/?#]*@|(?<=://)[^/?#\s]*@")

Finished = subprocess.CompletedProcess[bytes]


class GitFailed(CrawlerError):
    """A `git` process ended with an error that no other class describes."""

    exit_code = EXIT_UNAVAILABLE


class Pipes(NamedTuple):
    """Standard input and output of a running Git."""

    stdin: IO[bytes]
    stdout: IO[bytes]


def environment(
    *, network: bool = False, settings: Iterable[tuple[str, str]] = ()
) -> dict[str, str]:
    """Return the environment of a `git` process, with our limits of memory and `settings`.

    The user's configuration (proxies, certificates, credential helpers) is used only with
    `network`, to talk to a remote.
    """
    kept = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith("GIT_") or _KEPT.match(name)
    }
    pairs = [*git_memory.configuration().items(), *settings]
    given = {"GIT_CONFIG_COUNT": str(len(pairs))}
    for number, (name, value) in enumerate(pairs):
        given |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return SILENCE | kept | _FIXED | given | ({} if network else _ISOLATION)


def call(folder: Path, *arguments: str, stdin: bytes = b"") -> Finished:
    """Run `git ARGUMENTS` in the repository `folder`; its exit status is left to the caller."""
    with _starting():
        return subprocess.run(
            _command(folder, arguments),
            input=stdin,
            capture_output=True,
            env=environment(),
            check=False,
        )


def feed(
    folder: Path,
    *arguments: str,
    pieces: Iterable[bytes],
    pass_fds: Sequence[int] = (),
    settings: Iterable[tuple[str, str]] = (),
) -> Finished:
    """Do the same as `call` with an input that comes in pieces; the answer must be short."""
    # Git complains of a damaged pack at each object of its input: more than a pipe has room for.
    with tempfile.TemporaryFile() as words:
        with _start(folder, arguments, words, pass_fds, settings) as running:
            try:
                with contextlib.suppress(BrokenPipeError):  # its exit status tells why
                    cast(IO[bytes], running.stdin).writelines(pieces)
                stdout, _ = running.communicate()
            except BaseException:
                running.kill()
                raise
        words.seek(0)
        return Finished(arguments, running.returncode, stdout, words.read(MOST_WORDS_B))


def run(
    folder: Path,
    *arguments: str,
    stdin: bytes = b"",
    codes: Collection[int] = (0,),
) -> bytes:
    """Return what `git ARGUMENTS` prints; raise its `failure` if its status is not in `codes`."""
    done = call(folder, *arguments, stdin=stdin)
    if done.returncode not in codes:
        raise failure(folder, arguments, done.returncode, done.stderr)
    return done.stdout


def talk(
    folder: Path,
    *arguments: str,
    extra: Mapping[str, str],
    is_given_up: Callable[[], bool],
    settings: Iterable[tuple[str, str]] = (),
    stdin: bytes = b"",
) -> Finished | None:
    """Run a `git` that talks to a remote; end it and return None once `is_given_up()` is true.

    It gets a session of its own, so that Ctrl-C on the terminal reaches only us, and its helpers
    (ssh, curl) can be ended with it. `extra` is added to its environment, `settings` to its
    configuration.
    """
    if is_given_up():
        return None
    with (
        _starting(),
        _file_of(stdin) as given,
        subprocess.Popen(
            _command(folder, arguments),
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(network=True, settings=settings) | dict(extra),
            start_new_session=True,
        ) as running,
    ):
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    stdout, stderr = running.communicate(timeout=LOOK_S)
                    return Finished(arguments, running.returncode, stdout, stderr)
                if is_given_up():
                    return None
        finally:
            if running.poll() is None:
                _end_session(running)


@contextlib.contextmanager
def _file_of(stdin: bytes) -> Iterator[IO[bytes] | int]:
    """Give it as a file: `communicate` with a timeout forgets what it has not written yet."""
    if not stdin:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as file:
        file.write(stdin)
        file.seek(0)
        yield file


def ssh(folder: Path, is_given_up: Callable[[], bool]) -> dict[str, str]:
    """Return how `talk` is to call ssh: as the user has configured it, otherwise with _SSH."""
    if "GIT_SSH_COMMAND" in os.environ or "GIT_SSH" in os.environ:
        return {}
    wish = ("config", "--get", "core.sshCommand")
    found = talk(folder, *wish, extra={}, is_given_up=is_given_up)
    return {} if found and found.stdout else {"GIT_SSH_COMMAND": _SSH}


def _end_session(leader: "subprocess.Popen[bytes]") -> None:
    """End a process and its helpers; on SIGTERM Git removes its locks."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            leader.wait(KINDLY_S)


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Pipes]:
    """Run `git ARGUMENTS` during the block; it is killed if the block raises.

    Raises its `failure` if its exit status is not 0, also if the block raises BrokenPipeError
    because Git has ended early.
    """
    with tempfile.TemporaryFile() as words:
        process = _start(folder, arguments, words)
        pipes = Pipes(cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout))
        # Neither side then has to wait for the other after each record.
        files.widen(*pipes)
        try:
            yield pipes
            _close(pipes)
            code: int | None = process.wait()
        except BrokenPipeError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GOING_S)
            if process.returncode is None:  # the broken pipe is one of another process
                raise
            code = process.returncode or None
        finally:
            process.kill()  # does nothing if it has ended
            process.wait()
            _close(pipes)
        if code != 0:
            words.seek(0)
            raise failure(folder, arguments, code, words.read(MOST_WORDS_B))


def _close(pipes: Pipes) -> None:
    for pipe in pipes:
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


def lines(folder: Path, *arguments: str, end: bytes = b"\0") -> Iterator[bytes]:
    """Yield the lines that `git ARGUMENTS` prints, without `end`, which ends each of them."""
    rest = b""
    with running(folder, *arguments) as pipes:
        while data := pipes.stdout.read(1 << 18):
            *whole, rest = (rest + data).split(end)
            yield from whole
        if rest:
            yield rest


def failure(
    folder: Path, arguments: Sequence[str], status: int | None, stderr: bytes
) -> CrawlerError:
    """Return the error, in one line, that an exit status and the text on stderr mean.

    Status None: Git ended with 0, but before it had read all of its input.
    """
    text = stderr.decode("utf-8", "replace").strip()
    if _FULL.search(text) or status == -signal.SIGXFSZ:
        return Unavailable(f"{folder}: no space left to write; free some and run it again")
    if _DENIED.search(text):
        return ConfigurationError(f"{folder}: cannot be read or written: {gist(text)}")
    if "not a git repository" in text:
        return ConfigurationError(f"{folder}: there is no repository here")
    what = f"{folder}: git {arguments[0]}"
    if status is not None and status < 0:
        return Unavailable(f"{what}: killed by signal {-status}")
    return GitFailed(f"{what}: {gist(text)}" if text else f"{what}: ended early ({status})")


def gist(said: str) -> str:
    """Return in one line why Git failed, and what a remote said to it, without logins in URLs."""
    found = [line.strip() for line in said.splitlines() if line.strip()]
    complaints = [line for line in found if line.startswith(_COMPLAINTS)]
    first = (complaints or found or ["git said nothing"])[0]
    if first.endswith(":"):  # the reason is on the next line
        first = " ".join(found[found.index(first) :][:2])
    if "Could not read from remote repository" in first:  # ssh has said why, before Git
        first = found[max(0, found.index(first) - 1)]
    theirs = [line for line in found if re.match("remote: *[^ ]", line) and line not in first]
    return without_login("; ".join([first, *theirs[:_ITS_LINES]]).replace("\t", " "))


def without_login(text: str) -> str:
    """Return the text without user names and passwords in its URLs, for logs and tables."""
    return _LOGIN.sub(r"\1", text)


def _command(folder: Path, arguments: Sequence[str]) -> list[str]:
    # With --git-dir Git does not check who owns the folder.
    return ["git", f"--git-dir={folder}", *arguments]


def _start(
    folder: Path,
    arguments: Sequence[str],
    stderr: IO[bytes],
    pass_fds: Sequence[int] = (),
    settings: Iterable[tuple[str, str]] = (),
) -> "subprocess.Popen[bytes]":
    with _starting():
        return subprocess.Popen(
            _command(folder, arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment(settings=settings),
            pass_fds=pass_fds,
            bufsize=files.PIPE_B,
        )


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ConfigurationError("no git found: install it (Debian: apt install git)") from None
    except OSError as error:
        raise Unavailable(f"git cannot be run: {error.strerror or error}") from error


@functools.cache
def check_version() -> None:
    """Raise ConfigurationError if there is no `git`, or if it is older than OLDEST_GIT."""
    with _starting():
        done = subprocess.run(["git", "version"], capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise Unavailable(f"git cannot be run: killed by signal {-done.returncode}")
    match = re.search(r"(\d+)\.(\d+)", done.stdout)
    if match is None or (int(match[1]), int(match[2])) < OLDEST_GIT:
        oldest = ".".join(map(str, OLDEST_GIT))
        raise ConfigurationError(
            f"{done.stdout.strip()} is too old: {oldest} is the oldest that works"
        )
