#!/usr/bin/env python3
"""Print what differs from a schema: validate.py SCHEMA < changes.jsonl

The schemas in `data/schema` have all that Discogs sends today. A field that it adds is allowed.
"""

import json
import pathlib
import sys

import jsonschema

schema = jsonschema.Draft202012Validator(json.loads(pathlib.Path(sys.argv[1]).read_text()))
for change in map(json.loads, sys.stdin):
    for error in schema.iter_errors(change["data"]) if change["data"] else ():
        print(change["kind"], change["id"], error.json_path, error.message[:100])
