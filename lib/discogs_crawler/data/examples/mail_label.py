#!/usr/bin/env python3
"""Mail the new releases of a label: mail_label.py LABEL_ID ADDRESS < changes.jsonl

Use it with `export_changes.py --from now`, and start it when the first import is done: what a dump
brought has no `date_added`. An artist is in `release["artists"]` and `release["extraartists"]`, and
in the same fields of each track. The mail goes to `sendmail`.
"""

import datetime
import email.message
import json
import subprocess
import sys

label_id, address = int(sys.argv[1]), sys.argv[2]
# What the crawler stores for the first time may have been at Discogs for years.
since = str(datetime.date.today() - datetime.timedelta(days=60))
lines = []
for change in map(json.loads, sys.stdin):
    release = change["data"]
    if change["status"] != "A" or release.get("date_added", since) < since:
        continue
    for label in release.get("labels", []):
        if label["id"] == label_id:
            lines.append(
                f"{label.get('catno')}: {release.get('artists_sort')} - {release.get('title')}\n"
                f"    https://www.discogs.com/release/{release['id']}\n"
            )

if lines:
    message = email.message.EmailMessage()
    message["To"] = address
    message["Subject"] = f"{len(lines)} new on label {label_id}"
    # Half of a surrogate pair, which a text may have, cannot be mailed.
    message.set_content("".join(lines).encode(errors="replace").decode())
    subprocess.run(["sendmail", "-t"], input=message.as_bytes(), check=True)
