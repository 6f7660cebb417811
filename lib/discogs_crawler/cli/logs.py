"""Logs go to stderr: one line per event, plain or JSON, with every secret blacked out.

Foreign text in it (names of files, messages of servers, Redis and Git) can neither make lines of
its own nor control a terminal.
"""

import json
import logging
import sys
from collections.abc import Sequence

from discogs_crawler import clock
from discogs_crawler.cli.formatting import printable

# Blacking out a shorter text would say what it is, and spoil every other word.
SHORTEST_SECRET = 4


class _Formatter(logging.Formatter):
    """`SCRIPT: message` for cron mail and terminals, one JSON object per line for collectors."""

    def __init__(self, script: str, log_format: str, secrets: Sequence[str]) -> None:
        super().__init__()
        self._script = script
        self._json = log_format == "json"
        self._secrets = [secret for secret in secrets if len(secret) >= SHORTEST_SECRET]

    def format(self, record: logging.LogRecord) -> str:
        lines = [record.getMessage()]
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        for secret in self._secrets:
            lines = [line.replace(secret, "***") for line in lines]
        message = "\n".join(map(printable, lines))
        if not self._json:
            return f"{self._script}: {message}"
        return json.dumps(
            {
                "time": clock.iso(record.created + clock.OFFSET_S),
                "level": record.levelname.lower(),
                "script": self._script,
                "message": message,
            },
            ensure_ascii=False,
        )


def configure(
    script: str, verbosity: int = 0, log_format: str = "text", secrets: Sequence[str] = ()
) -> None:
    """Send warnings (`-v`: progress; `-vv`: details; `-q`: errors only) to stderr."""
    levels = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(script, log_format, secrets))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    # It logs a traceback for an answer with malformed headers; we report such answers ourselves.
    logging.getLogger("urllib3.connection").setLevel(logging.CRITICAL)
    logging.getLogger("discogs_crawler").setLevel(levels.get(verbosity, logging.DEBUG))
