"""Consumers of exports: one of what an export prints, when it counts; one of its files."""

import contextlib
import gzip
import hashlib
import json
import signal
import sqlite3
from pathlib import Path
from typing import Any

from discogs_crawler.records import record_path

EXPORT = ("export_changes.py", "--consumer", "demo", "--format", "jsonl")
EXPORT_FILES = ("export_changes.py", "--consumer", "files", "--keep", "40", "--previous", "--into")


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
        with contextlib.closing(sqlite3.connect(self._database)) as ledger:
            try:
                rows = ledger.execute("SELECT revision FROM consumers WHERE name = 'demo'")
            except sqlite3.OperationalError:  # whoever was to make the table was killed
                return None
            found = rows.fetchone()
        return found and found[0]


class Follower:
    """A reader of the files of EXPORT_FILES that obeys the state file.

    `wrong` counts what no reader may ever see: a file that is missing or not as announced, a number
    with another content than before, a change that does not follow from what was before it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, Any] = {}
        self.wrong = 0
        self._sequence: int | None = None

    def read(self) -> None:
        path = self.folder / "files.state.json"
        if not path.exists():
            return
        state = json.loads(path.read_bytes())
        if self._sequence is None or self._sequence + 1 < state["first"]:
            self.records.clear()
            self._take(state["baseline"])
            self._sequence = state["baseline"]["sequence"]
        for number in range(self._sequence + 1, state["sequence"] + 1):
            self._take(json.loads((self.folder / f"files-{number:09}.state.json").read_bytes()))
            self._sequence = number

    def _take(self, about: dict[str, Any]) -> None:
        packed = (self.folder / about["file"]).read_bytes()
        self.wrong += hashlib.sha256(packed).hexdigest() != about["sha256"]
        for change in map(json.loads, gzip.decompress(packed).splitlines()):
            path = record_path(change["kind"], change["id"])
            self.wrong += self.records.get(path) != change["previous"]
            self.records[path] = change["data"]
