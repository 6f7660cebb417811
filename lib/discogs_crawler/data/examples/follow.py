#!/usr/bin/env python3
"""Follow the files of `export_changes.py --into` on any web server, into a SQLite database.

Example: follow.py https://example.org/discogs/web.state.json music.db    (from cron; run it again)
"""

import gzip
import hashlib
import json
import shutil
import sys
import tempfile
from urllib.parse import urljoin

import sqlite_utils
import urllib3


def download(url, file):
    with urllib3.request("GET", url, preload_content=False) as answer:
        if answer.status != 200:
            sys.exit(f"{url}: HTTP {answer.status}; run it again later")
        shutil.copyfileobj(answer, file)


def apply(about, *, from_nothing=False):
    with tempfile.TemporaryFile() as packed, db.atomic():
        download(urljoin(state_url, about["file"]), packed)
        packed.seek(0)
        if hashlib.file_digest(packed, "sha256").hexdigest() != about["sha256"]:
            sys.exit(f"{about['file']}: damaged on its way; run it again")
        packed.seek(0)
        if from_nothing:
            records.delete_where()
        with gzip.open(packed) as lines:
            for change in map(json.loads, lines):
                if change["data"] is None:
                    records.delete_where("kind = ? AND id = ?", [change["kind"], change["id"]])
                else:
                    records.upsert({name: change[name] for name in ("kind", "id", "data")})
        db["place"].upsert({"id": 1, "sequence": about["sequence"]}, pk="id")


def state(url):
    with tempfile.TemporaryFile() as file:
        download(url, file)
        file.seek(0)
        return json.load(file)


state_url, db = sys.argv[1], sqlite_utils.Database(sys.argv[2])
records = db["records"].create(
    {"kind": str, "id": int, "data": str}, pk=("kind", "id"), if_not_exists=True
)
mine = next((row["sequence"] for row in db["place"].rows), None) if db["place"].exists() else None
last = state(state_url)
if mine is None:
    if last["baseline"] is None:
        sys.exit(f"{state_url}: it has no baseline to begin with")
    apply(last["baseline"], from_nothing=True)
    mine = last["baseline"]["sequence"]
elif mine + 1 < last["first"]:
    sys.exit(f"number {mine + 1} is gone: delete {sys.argv[2]} to begin again with the baseline")
for sequence in range(mine + 1, last["sequence"] + 1):
    apply(state(state_url.replace(".state.json", f"-{sequence:09}.state.json")))
