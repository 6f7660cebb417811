"""The README in the root of the repository: all that somebody who clones it needs to know."""

from discogs_crawler import clock
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.records import KINDS
from discogs_crawler.store import fast_import, objects
from discogs_crawler.store.fast_import import Entry, Pushed
from discogs_crawler.store.layouts import Store

_TEXT = """\
# Discogs database: one JSON file per record

A copy of the releases, artists, labels and masters of https://www.discogs.com, as its API gives
them, without what is volatile (prices, counts, image addresses). Made and kept up to date by
crawler_for_discogs {version}.

| kind | records | of these from a dump | latest dump it was compared with |
|---|---|---|---|
{rows}

Last change of a record: {changed}.

## Find a record

The path is made of the number: millions, ten-thousands, hundreds (two digits each, at least).

    KIND/MM/TT/HH/NUMBER.json

Release 13999999 is `releases/13/99/99/13999999.json`, release 1 is `releases/00/00/00/1.json`.
{mounted}
A file is UTF-8 JSON with sorted keys, an indent of two spaces, and a line feed at the end. What is
in it is described, as JSON Schema, in `KIND.schema.json` at
https://github.com/armijnhemel/crawler_for_discogs/tree/HEAD/lib/discogs_crawler/data/schema

A record that begins with `"_dump": "YYYYMMDD"` was made from the monthly dump of that day: it has
the fields that dumps have, in the same shape. All others are as the API gave them.

## Clone

A work tree of millions of small files is slow and large. You seldom need one:

    git clone --bare URL discogs.git                      # everything, with its history
    git --git-dir discogs.git show {branch}:releases/00/00/00/1.json

{recipes}
## Follow the changes

Remember the commit that you have processed, fetch, and ask for what differs:

    git --git-dir discogs.git diff-tree -r --no-renames --name-status OLD NEW

Every commit message has the numbers of records added, changed and removed, and why (`Reason`).
Commits with the trailer `Technical` rewrite records because the rules of this copy changed.

## Licence and terms

Data provided by Discogs (https://www.discogs.com). Titles, names, credits, tracklists, identifiers
and notes are published by Discogs under CC0, and so are its dumps: records that begin with
`"_dump"` hold nothing else. Images, user names and marketplace data are what its API terms of use
call restricted data; those terms also limit how long API content may be cached
and shown, and its terms of service speak against handing on archived copies. Read both before you
pass any of this on. This copy is not affiliated with, sponsored or endorsed by Discogs.
"""

_SINGLE_RECIPES = """\
Which records are from a dump, and the commits that brought them:

    git --git-dir discogs.git grep -l -F '  "_dump": ' {branch} -- releases/00/00
    git --git-dir discogs.git log --first-parent --grep='^Source: dump'

Only the newest state, records downloaded as you ask for them:

    git clone --bare --depth=1 --filter=blob:none URL discogs.git

One million numbers as files (here the releases 13000000 to 13999999):

    git clone --no-checkout --depth=1 --filter=blob:none --sparse URL discogs
    git -C discogs sparse-checkout set releases/13
    git -C discogs checkout {branch}

"""

_MODULE_RECIPES = """\
Each `KIND/MM` is a repository of its own (a submodule). All of them:

    git clone --recurse-submodules URL discogs

One million numbers as files (here the releases 13000000 to 13999999):

    git clone URL discogs
    git -C discogs submodule update --init --depth=1 releases/13

"""


def update(store: Store, ledger: Ledger | None, version: str, branch: str) -> bool:
    """Commit the README if records have changed since it was written; True if so."""
    top = store.top

    def attempt() -> str | Pushed | None:
        base = top.refresh()
        if base is None or _is_ours(store, base):
            return None
        text = render(store, base, ledger, version, branch).encode()
        before = fast_import.stored(store.repository, base, ["README.md"])
        if before.get("README.md") == objects.blob_id(text):
            return None
        return top.publish(base, [Entry("README.md", text)], "README: counts and dates\n")

    return top.retried(attempt) is not None


def _is_ours(store: Store, commit: str) -> bool:
    """Whether the newest commit is the one that wrote the README."""
    subject = store.repository.run("log", "-1", "--format=%s", commit)
    return subject.startswith(b"README:")


def render(store: Store, tip: str, ledger: Ledger | None, version: str, branch: str) -> str:
    """The README of the store as it is at `tip`."""
    epoch = int(store.repository.run("log", "-1", "--format=%ct", tip).strip() or 0)
    single = store.layout == "single"
    recipes = _SINGLE_RECIPES if single else _MODULE_RECIPES
    return _TEXT.format(
        version=version,
        rows="\n".join(_row(store, ledger, kind) for kind in KINDS),
        changed=clock.iso(epoch),
        mounted="" if single else "\nEvery `KIND/MM` is a submodule.\n",
        branch=branch,
        recipes=recipes.format(branch=branch),
    )


def _row(store: Store, ledger: Ledger | None, kind: str) -> str:
    dump, imported = None, "unknown"
    if ledger is None or not ledger.knows_something():
        number = sum(1 for _ in store.ids(kind))
    else:
        dump = ledger.last_accepted(kind)
        query = "SELECT ifnull(sum(records), 0) FROM counts WHERE kind = ? AND state = ?"
        numbers = [
            ledger.db.execute(query, (kind, state)).fetchone()[0]
            for state in ("stored", "imported")
        ]
        number, imported = sum(numbers), f"{numbers[1]:,}"
    named = "none" if dump is None else f"{dump.file} ({clock.iso(dump.not_before)[:10]})"
    return f"| {kind} | {number:,} | {imported} | {named} |"
