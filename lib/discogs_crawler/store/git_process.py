"""The one way to run Git: its environment, its pipes, its last words, and what a failure means.

Nothing here imports GitPython, which takes longer to load (0.3 s) than most exports to run.
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

# What is read of its complaints, at most.
MOST_WORDS_B = 1 << 20

# How often it is looked whether a remote is still to be waited for.
LOOK_S = 0.2

# How long a process may take to end when asked to.
KINDLY_S = 1

# How long a process takes at most to be gone once it has closed its end of a pipe.
GOING_S = 2

# How long a remote over http may be silent, in seconds, unless the user's environment says it: a
# connection that died without a word (a router began anew) is not waited for without end. While a
# server of Git thinks, it sends 5 bytes every 5 seconds.
SILENCE = {"GIT_HTTP_LOW_SPEED_LIMIT": "1", "GIT_HTTP_LOW_SPEED_TIME": "900"}

# How the user wants Git to connect and to trace. Every other variable of Git could point it at
# another repository, another author or other rules.
_KEPT = re.compile(
    r"GIT_(SSH|SSL|HTTP|PROXY|CURL|TRACE|ASKPASS|EXEC_PATH|ALLOW_PROTOCOL"
    r"|CONFIG_(GLOBAL|SYSTEM|NOSYSTEM)$)"
)
# Git 3 makes the last two only if told to: EMPTY_TREE is of the one, GitPython reads the other.
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
# Within a text a blank ends a URL.
_LOGIN = re.compile(r"^([a-z][a-z0-9+.-]*://)[^/?#]*@|(?<=://)[^/?#\s]*@")

Finished = subprocess.CompletedProcess[bytes]


class GitFailed(CrawlerError):
    """A `git` process ended with an error that we know no better name for."""

    exit_code = EXIT_UNAVAILABLE


class Pipes(NamedTuple):
    """The two ends of a running Git."""

    stdin: IO[bytes]
    stdout: IO[bytes]


def environment(
    *, network: bool = False, settings: Iterable[tuple[str, str]] = ()
) -> dict[str, str]:
    """The environment of a `git` process, with the limits of its memory and these settings.

    Talking to a remote needs the user's proxies, certificates and credential helpers; nothing
    else may depend on them.
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


def call(
    folder: Path,
    *arguments: str,
    stdin: bytes = b"",
    network: bool = False,
) -> Finished:
    """Run `git ARGUMENTS` in the repository `folder` to its end, whatever that is."""
    with _starting():
        return subprocess.run(
            _command(folder, arguments),
            input=stdin,
            capture_output=True,
            env=environment(network=network),
            check=False,
        )


def feed(
    folder: Path,
    *arguments: str,
    pieces: Iterable[bytes],
    pass_fds: Sequence[int] = (),
    settings: Iterable[tuple[str, str]] = (),
) -> Finished:
    """As `call`, with an input that is made piece by piece; the answer must be short."""
    # Git complains of a damaged pack at each object of its input, more than a pipe has room for.
    with tempfile.TemporaryFile() as words:
        with _starting():
            process = subprocess.Popen(
                _command(folder, arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env=environment(settings=settings),
                pass_fds=pass_fds,
                bufsize=files.PIPE_B,
            )
        with process as running:
            try:
                with contextlib.suppress(BrokenPipeError):  # its exit status says why
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
    network: bool = False,
) -> bytes:
    """What `git ARGUMENTS` prints. Raises what `failure` makes of an exit status not in `codes`."""
    done = call(folder, *arguments, stdin=stdin, network=network)
    if done.returncode not in codes:
        raise failure(folder, arguments, done.returncode, done.stderr)
    return done.stdout


def talk(
    folder: Path,
    *arguments: str,
    extra: Mapping[str, str],
    is_given_up: Callable[[], bool],
    settings: Iterable[tuple[str, str]] = (),
) -> Finished | None:
    """Run a `git` that talks to a remote; None if it was ended because `is_given_up`.

    It is the first of a session, away from the terminal: Ctrl-C is for us to judge, and its
    helpers (ssh, curl) end with it.
    """
    if is_given_up():
        return None
    with (
        _starting(),
        subprocess.Popen(
            _command(folder, arguments),
            stdin=subprocess.DEVNULL,
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


def _end_session(leader: "subprocess.Popen[bytes]") -> None:
    """End a process and its helpers; Git removes its locks if it is asked kindly."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            leader.wait(KINDLY_S)


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Pipes]:
    """A `git` to talk to during the block; it is killed if the block fails or is left early.

    Raises what `failure` makes of its exit status if that is not 0.
    """
    with tempfile.TemporaryFile() as words:
        with _starting():
            process = subprocess.Popen(
                _command(folder, arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env=environment(),
                bufsize=files.PIPE_B,
            )
        pipes = Pipes(cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout))
        # For Git to run ahead of us, and we of it, without a change of processes for each record.
        files.widen(*pipes)
        try:
            yield pipes
            _close(pipes)
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
            _close(pipes)
        if code != 0:
            words.seek(0)
            raise failure(folder, arguments, code, words.read(MOST_WORDS_B))


def _close(pipes: Pipes) -> None:
    for pipe in pipes:
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


def _has_gone(process: "subprocess.Popen[bytes]") -> bool:
    try:
        process.wait(GOING_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def lines(folder: Path, *arguments: str, end: bytes = b"\0") -> Iterator[bytes]:
    """The records that `git ARGUMENTS` prints, ended by `end`, as they come."""
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
    """The error that an exit status and the text on stderr stand for, in one line.

    None: it has ended early, and in order.
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
    """The line of what Git has said that says why: the first complaint. Without a login."""
    found = [line.strip() for line in said.splitlines() if line.strip()]
    complaints = [line for line in found if line.startswith(_COMPLAINTS)]
    first = (complaints or found or ["git said nothing"])[0]
    if first.endswith(":"):  # what follows is the reason
        first = " ".join(found[found.index(first) :][:2])
    return without_login(first.replace("\t", " "))


def without_login(text: str) -> str:
    """The text without user names and passwords in its URLs, fit for a log or a table."""
    return _LOGIN.sub(r"\1", text)


def _command(folder: Path, arguments: Sequence[str]) -> list[str]:
    # Naming the folder also keeps Git from asking whose it is.
    return ["git", f"--git-dir={folder}", *arguments]


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
    """ConfigurationError if there is no `git`, or one that is too old."""
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
