#!/usr/bin/env python3
"""Mail changed tracklists of a label: mail_tracklist.py LABEL_ID ADDRESS < changes.jsonl

The changes are those of export_changes.py --format jsonl --previous.
"""

import difflib
import email.message
import json
import subprocess
import sys


def tracks(release):
    names = ("position", "title", "duration")
    return [
        " ".join(one.get(name) or "-" for name in names)
        for track in release.get("tracklist", [])
        for one in (track, *track.get("sub_tracks", []))
    ]


label_id, address = int(sys.argv[1]), sys.argv[2]
lines = []
for change in map(json.loads, sys.stdin):
    old, new = change["previous"], change["data"]
    if change["status"] != "M" or all(label["id"] != label_id for label in new.get("labels", [])):
        continue
    differences = list(difflib.ndiff(tracks(old), tracks(new)))
    if any(line[0] in "+-" for line in differences):
        lines += [f"{new.get('title')}: https://www.discogs.com/release/{new['id']}"]
        lines += [f"  {line}" for line in differences if line[0] in "+-"]

if lines:
    message = email.message.EmailMessage()
    message["To"] = address
    message["Subject"] = f"Changed tracklists on label {label_id}"
    # Half of a surrogate pair, which a text may have, cannot be mailed.
    message.set_content("\n".join([*lines, ""]).encode(errors="replace").decode())
    subprocess.run(["sendmail", "-t"], input=message.as_bytes(), check=True)
