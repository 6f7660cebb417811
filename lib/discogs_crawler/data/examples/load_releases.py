#!/usr/bin/env python3
"""Apply changed releases to a SQLite database: load_releases.py DATABASE < changes.jsonl"""

import itertools
import json
import sys

import sqlite_utils


def text(value):
    # A text may have half of a surrogate pair, which SQLite refuses: it stays an escape.
    return value and value.encode(errors="backslashreplace").decode()


def row(release):
    return {
        "id": release["id"],
        "artist": text(release.get("artists_sort")),
        "title": text(release.get("title")),
        "country": text(release.get("country")),
        "year": release.get("year"),
        "release": text(json.dumps(release, ensure_ascii=False)),
    }


db = sqlite_utils.Database(sys.argv[1])
releases = db["releases"]
columns = {"id": int, "artist": str, "title": str, "country": str, "year": int, "release": str}
releases.create(columns, pk="id", if_not_exists=True)
changes = map(json.loads, sys.stdin)

with db.atomic():
    while batch := list(itertools.islice(changes, 1000)):
        # With --skip-technical an id may come twice: its last change counts.
        batch = {change["id"]: change for change in batch}.values()
        stored = [row(change["data"]) for change in batch if change["data"]]
        deleted = [(change["id"],) for change in batch if not change["data"]]
        if stored:
            releases.insert_all(stored, replace=True)
        db.conn.executemany("DELETE FROM releases WHERE id = ?", deleted)
