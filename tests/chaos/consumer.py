"""A consumer of exports, and when it has been given what an export printed."""

import contextlib
import json
import signal
import sqlite3
from pathlib import Path

from discogs_crawler.records import record_path

EXPORT = ("export_changes.py", "--consumer", "demo", "--format", "jsonl")


class Consumer:
    """`records`: by path what it was given last, as JSON; None for what was removed."""

    def __init__(self, database: Path) -> None:
        """`database` is the ledger, which knows how far the consumer has come."""
        self._database = database
        self._place: str | None = None
        self.records: dict[str, str | None] = {}

    def begin(self) -> None:
        """Call it before an export starts."""
        self._place = self._place_in_ledger()

    def take(self, output: Path, code: int) -> None:
        """Take what an export printed, if it counts.

        Killed at the last moment, it may have done all: what it had begun to write is whole then.
        """
        moved = code == -signal.SIGKILL and self._place_in_ledger() != self._place
        if code != 0 and not moved:
            return
        for line in output.read_text().splitlines():
            change = json.loads(line)
            path = record_path(change["kind"], change["id"])
            self.records[path] = json.dumps(change["data"]) if change["data"] else None

    def _place_in_ledger(self) -> str | None:
        if not self._database.exists():
            return None
        with contextlib.closing(sqlite3.connect(self._database)) as books:
            try:
                rows = books.execute("SELECT revision FROM consumers WHERE name = 'demo'")
            except sqlite3.OperationalError:  # whoever was to make the table was killed
                return None
            found = rows.fetchone()
        return found and found[0]
