"""Logs go to stderr: one line an event, plain or JSON, with every secret blacked out.

What others wrote (names in a store, words of a server) cannot steer the terminal that shows it.
"""

import json
import logging
import re
import sys
from collections.abc import Sequence

from discogs_crawler import clock

# Blacking out a shorter text would say what it is, and spoil every other word.
SHORTEST_SECRET = 4

# What a terminal obeys or a collector takes for the end of a line, and what turns text around.
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class _Formatter(logging.Formatter):
    """`SCRIPT: message` for cron mail and terminals, one JSON object a line for collectors."""

    def __init__(self, script: str, log_format: str, secrets: Sequence[str]) -> None:
        super().__init__()
        self._script = script
        self._json = log_format == "json"
        self._secrets = [secret for secret in secrets if len(secret) >= SHORTEST_SECRET]

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if not self._json:
            message = _CONTROL.sub(_escaped, message)
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        for secret in self._secrets:
            message = message.replace(secret, "***")
        if not self._json:
            return f"{self._script}: {message}"
        line = json.dumps(
            {
                "time": clock.iso(record.created + clock.OFFSET_S),
                "level": record.levelname.lower(),
                "script": self._script,
                "message": message,
            },
            ensure_ascii=False,
        )
        return _CONTROL.sub(_escaped, line)


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


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
    # Of an answer with malformed headers it logs a traceback; what came of it we say ourselves.
    logging.getLogger("urllib3.connection").setLevel(logging.CRITICAL)
    logging.getLogger("discogs_crawler").setLevel(levels.get(verbosity, logging.DEBUG))
