"""What every script in `bin/` shares: flags, logs, and how a failure becomes an exit code."""

import argparse
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from discogs_crawler import __version__, config, logs, ping
from discogs_crawler.config import Settings
from discogs_crawler.errors import (
    EXIT_BUG,
    EXIT_PARTLY,
    EXIT_USAGE,
    BadData,
    CrawlerError,
    Unavailable,
)

log = logging.getLogger(__name__)

# What SQLite says of a file, and of a disk or a lock; its other errors are ours.
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_CIRCUMSTANCES = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR),
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM),
}

Command = Callable[[argparse.Namespace, Settings], int]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser(doc: str | None, *settings: str) -> argparse.ArgumentParser:
    """A parser whose --help begins with the script's docstring, with the flags all scripts have.

    `settings` names those settings that the script's user may give as flags.
    """
    result = _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    result.add_argument("-v", "--verbose", action="count", default=0, help="tell more (twice: all)")
    result.add_argument("-q", "--quiet", action="store_true", help="only errors")
    result.add_argument("--env-file", metavar="FILE", help="read settings from FILE, not .env")
    config.add_flags(result, (*settings, "STATE_DIR", "LOG_FORMAT"))
    return result


def run(
    command: Command, arguments: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> int:
    """Parse, load the settings, call `command`; what it raises becomes one line and a code."""
    script = Path(arguments.prog).name
    logs.configure(script)
    flags = arguments.parse_args(argv)
    verbosity = -1 if flags.quiet else flags.verbose
    try:
        settings = config.load(flags)
        logs.configure(script, verbosity, settings.log_format, settings.secrets())
        for warning in settings.warnings:
            log.warning("%s", warning)
        code = ping.watch(settings, script, lambda: command(flags, settings))
        if sys.stdout is not None:  # closed by `>&-`
            sys.stdout.flush()
        return code
    except CrawlerError as error:
        log.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        log.error("interrupted; run it again to go on")
        return EXIT_PARTLY
    except BrokenPipeError:
        # The reader of stdout has gone; give the interpreter's last flush somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PARTLY
    except Exception as error:
        meaning = _meaning(error)
        if meaning is not None:
            log.error("%s", meaning)
            return meaning.exit_code
        log.exception("this is a bug; please report it with the lines below")
        return EXIT_BUG


def _meaning(error: Exception) -> CrawlerError | None:
    """What the machine's refusal of something means for the user; None for a bug."""
    if isinstance(error, sqlite3.DatabaseError):
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in _DAMAGE:
            return BadData(f"the ledger is damaged: {error}; restore it from its backup")
        if code in _CIRCUMSTANCES:
            return Unavailable(f"the ledger cannot be used now: {error}")
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return Unavailable(f"{where}{error.strerror}")
    return None


def terminate_like_interrupt() -> None:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that temporary files are removed."""

    def handler(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, handler)
