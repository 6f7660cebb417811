#!/usr/bin/env python3
"""Follow the files of `export_changes.py --into` on any web server, into a SQLite database.

Example, from cron: follow.py https://example.org/discogs/web.state.json music.db
On a machine without the crawler: pip install sqlite-utils urllib3

It begins with the baseline, which has all records, and then takes each numbered file in order.
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


def get(url):
    # Some servers say of a .gz file that they have compressed it: it is wanted as it is.
    answer = urllib3.request("GET", url, preload_content=False, decode_content=False)
    if answer.status != 200:
        sys.exit(f"{url}: HTTP {answer.status}; run it again later")
    return answer


def numbers():
    return [row["sequence"] for row in place.rows]


def apply(about, before):
    with tempfile.TemporaryFile() as packed:
        shutil.copyfileobj(get(urljoin(state_url, about["file"])), packed)
        packed.seek(0)
        if hashlib.file_digest(packed, "sha256").hexdigest() != about["sha256"]:
            sys.exit(f"{about['file']}: damaged on its way; run it again")
        packed.seek(0)
        with gzip.open(packed) as lines, db.atomic():
            # Cron may start one while another is at work: what that has must not be taken back.
            if numbers() != before:
                sys.exit(f"{sys.argv[2]}: another {sys.argv[0]} is at work; run it again later")
            for change in map(json.loads, lines):
                if change["data"] is None:
                    records.delete_where("kind = ? AND id = ?", [change["kind"], change["id"]])
                else:
                    data = json.dumps(change["data"], ensure_ascii=False)
                    # Half of a surrogate pair, which SQLite refuses, stays an escape.
                    data = data.encode(errors="backslashreplace").decode()
                    records.upsert({"kind": change["kind"], "id": change["id"], "data": data})
            place.upsert({"id": 1, "sequence": about["sequence"]})


def follow():
    last = json.load(get(state_url))
    if not numbers():
        apply(last["baseline"] or sys.exit(f"{state_url}: it has no baseline to begin with"), [])
    [mine] = numbers()
    if not last["first"] - 1 <= mine <= last["sequence"]:
        sys.exit(
            f"number {mine + 1} is gone: delete {sys.argv[2]} to begin again with the baseline"
        )
    for sequence in range(mine + 1, last["sequence"] + 1):
        about = json.load(get(state_url.replace(".state.json", f"-{sequence:09}.state.json")))
        apply(about, [sequence - 1])


state_url, db = sys.argv[1], sqlite_utils.Database(sys.argv[2])
columns = {"kind": str, "id": int, "data": str}
records = db["records"].create(columns, pk=("kind", "id"), if_not_exists=True)
place = db["place"].create({"id": int, "sequence": int}, pk="id", if_not_exists=True)
try:
    follow()
except urllib3.exceptions.HTTPError as error:
    sys.exit(f"{state_url}: {error}; run it again later")
