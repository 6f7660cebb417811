"""What every script in `bin/` shares: flags, logs, and exit codes of failures."""

import argparse
import contextlib
import logging
import os
import re
import signal
import sqlite3
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NoReturn

from discogs_crawler import __version__, config, sqlite_errors
from discogs_crawler.cli import descendants, healthcheck, logs
from discogs_crawler.cli.formatting import printable
from discogs_crawler.cli.shutdown import ASKING, listen
from discogs_crawler.config import Settings
from discogs_crawler.errors import (
    EXIT_BUG,
    EXIT_PARTLY,
    EXIT_USAGE,
    CrawlerError,
    NothingYet,
    Unavailable,
)

log = logging.getLogger(__name__)

Command = Callable[[argparse.Namespace, Settings], int]
Pings = Callable[[argparse.Namespace], Collection[str]]

_last_acts: list[Callable[[], NoReturn]] = []


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


def parser(doc: str | None, *settings: str) -> argparse.ArgumentParser:
    """A parser whose --help begins with the script's docstring, with the flags all scripts have.

    `settings` names those settings that the script's user may give as flags.
    """
    result = _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    result.add_argument(
        "-v", "--verbose", action="count", default=0, help="log more (twice: everything)"
    )
    result.add_argument("-q", "--quiet", action="store_true", help="log only errors")
    result.add_argument("--env-file", metavar="FILE", help="read settings from FILE, not .env")
    config.add_flags(result, (*settings, "STATE_DIR", "LOG_FORMAT"))
    return result


def positive(text: str) -> int:
    """The number that a flag with `type=positive` counts something with."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,17}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"it must be at least 1: {text!r}")
    return int(text)


def filled(text: str) -> str:
    """A flag's value, which is not that of a variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("its value is empty")
    return text


def path(text: str) -> Path:
    """A file or folder: Path("") would be the current folder."""
    return Path(filled(text))


def all_pings(flags: argparse.Namespace) -> Collection[str]:
    """What HEALTHCHECK_URL is told of most scripts, whatever their flags."""
    return healthcheck.ALL


def script(
    command: Command, arguments: argparse.ArgumentParser, pings: Pings = all_pings
) -> NoReturn:
    """Run the script and exit; whatever ends it, no process that it has started is left."""
    code = EXIT_PARTLY
    try:
        with contextlib.suppress(KeyboardInterrupt):  # a second one
            code = run(command, arguments, pings=pings)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        descendants.end()
    sys.exit(code)


def run(
    command: Command,
    arguments: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    pings: Pings = all_pings,
) -> int:
    """Parse, load the settings, call `command`; what it raises becomes one line and a code."""
    _fill_closed_streams()
    script = Path(arguments.prog).name
    logs.configure(script)
    flags = arguments.parse_args(argv)
    verbosity = -1 if flags.quiet else flags.verbose
    settings: Settings | None = None
    try:
        settings = config.load(flags)
        logs.configure(script, verbosity, settings.log_format, settings.secrets())
        for warning in settings.warnings:
            log.warning("%s", warning)
        code = healthcheck.watch(settings, script, lambda: command(flags, settings), pings(flags))
        if sys.stdout is not None:  # closed by `>&-`
            sys.stdout.flush()
        for act in _last_acts:
            _end_undisturbed()
            act()
        return code
    except CrawlerError as error:
        is_news = not isinstance(error, NothingYet) or sys.stderr.isatty()
        log.log(logging.ERROR if is_news else logging.INFO, "%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        log.error("interrupted; run it again to go on")
        return EXIT_PARTLY
    except BrokenPipeError:
        _drop_what_is_not_printed()
        return EXIT_PARTLY
    except Exception as error:
        meaning = _meaning(error, settings)
        if meaning is not None:
            log.error("%s", meaning)
            _drop_what_is_not_printed()
            return meaning.exit_code
        log.exception("this is a bug; please report it with the lines below")
        return EXIT_BUG


def _fill_closed_streams() -> None:
    """Let no file that we open get the number of a stream that our starter closed (`2>&-`).

    Standard output stays closed: what cannot be printed must not count as printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)  # the lowest free one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _drop_what_is_not_printed() -> None:
    """Let the interpreter's last flush succeed even if the reader of stdout is gone or full."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _meaning(error: Exception, settings: Settings | None) -> CrawlerError | None:
    """The meaning of an error of the machine for the user; None for a bug."""
    if isinstance(error, sqlite3.DatabaseError) and settings is not None:
        return sqlite_errors.meaning(error, settings.database)
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return Unavailable(f"{where}{error.strerror}")
    return None


def end_with(act: Callable[[], NoReturn]) -> None:
    """Let `act` end the process after everything else: reported, flushed, signals ignored."""
    _last_acts.append(act)


def _end_undisturbed() -> None:
    """Let no signal change the exit code any more: what happens next counts as done."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)


def terminate_like_interrupt() -> None:
    """Let SIGTERM and a closed terminal unwind the stack as Ctrl-C does.

    So temporary files are removed, and what we have started is ended.
    """

    def handler(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    listen(handler)
