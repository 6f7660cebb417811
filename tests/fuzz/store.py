"""Stores that mean harm, made at random, and what an export must make of each.

    python -m tests.fuzz.store [--inputs N] [--seed S]

Objects are written by hand, for Git refuses to make most of these. The export may refuse a store
with one line. It must not crash, write outside of its own folder, tell a terminal what to do, or
pass on what is no record; and two exports must give what one does.
"""

import argparse
import hashlib
import json
import logging
import random
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from discogs_crawler.cli.logs import _Formatter
from discogs_crawler.errors import CrawlerError
from discogs_crawler.export import formats, mirror
from discogs_crawler.export import run as export_run
from discogs_crawler.export.revisions import StoreSource
from discogs_crawler.export.run import Form, Plan
from discogs_crawler.ledger.consumers import Consumer
from discogs_crawler.records import parse_record_path, record_path
from discogs_crawler.store.objects import EMPTY_TREE
from tests.plain_git import record

CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]")
KEYS = ["kind", "id", "status", "revision", "data"]

NAMES = (
    *(b"..", b".", b".git", b"", b"a\nb", b"a\tb", b"\x1b[31m", b"\xff\xfe", b"-x", b'"', b"a b"),
    *(b"00", b"01", b"000", b"013", b"100", b"1.json", b"01.json", b"2.json", b"1.json\n", b"x"),
    *(b"releases", b"artists", b"CANARY", b"../../x", b"releases/00", b"a" * 5_000),
    *("\u202e\x9b31m".encode(), "٣".encode(), b"\\", b"--upload-pack=touch x", b"1.JSON"),
)
MODES = (b"100644", b"100755", b"120000", b"160000", b"40000", b"100664", b"0", b"777777", b"x")
BLOBS = (
    *(b"", b"{}", b"[]", b"null", b"1", b'{"id": 1}', b'{"id": "1"}', b'{"id": 1}\n{"id": 2}\n'),
    *(b'{"id": 1, "a": "x\ny"}', b'{"id": 1}},\n{"kind":"releases","id":7,"data":{"id":7}', b"\0"),
    *(b'{"id": 1, "id": 2}', b'{"id": NaN}', b'{"id": 1,\r"a": 2}', b'{"id": 1, "\x1b": 2}'),
    *(b'{"id": 1, "a": "\xff"}', b'{"id": 1, "a": "\x7f\xc2\x9b31m"}', b'{"id": 01}'),
    *(b"../../../CANARY/HEAD", b"[" * 100_000, b'{"a":' * 50_000, b'{"id": ' + b"1" * 9_999 + b"}"),
    *(b'\xef\xbb\xbf{"id": 1}', b'{"id": 1} {"id": 1}', b'{"id": 1.0}', b'{"id": 1e0}'),
)
PATHS = ("releases/00", "releases/0", "CANARY", "..", "../x", "a\\nb", "/", "-x", "", "artists/01")
URLS = (
    *("../releases/00.git", "CANARY", "file://CANARY", "../../canary.git", "ext::touch CANARY/x"),
    *("--upload-pack=touch x", "../-x", "..", "./x", "ssh://-oProxyCommand=touch x/y", "a\\nb"),
    *("../../../../../..CANARY", "http://127.0.0.1:9/x", "git@-x:y", "../releases/../../x"),
)
MESSAGES = (
    b"a change\n",
    b"",
    b"x\n\nTechnical: a\n b\n c\n",
    b"\x1b[31m\n\nTechnical: \x1b]0;x\x07\n",
    b"\xff\n",
)

Node = dict[bytes, tuple[bytes, "Node | bytes"]]


class Hostile:
    """A repository, written object by object."""

    def __init__(
        self, folder: Path, rng: random.Random, canary: str, *, shuffles: bool = True
    ) -> None:
        self.folder, self.rng, self._canary, self._shuffles = folder, rng, canary, shuffles
        self.sorted = True
        for name in ("objects/pack", "objects/info", "refs/heads"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "HEAD").write_text("ref: refs/heads/main\n")
        (folder / "config").write_text(
            "[core]\n\trepositoryformatversion = 0\n\tbare = true\n[uploadpack]\n"
            "\tallowFilter = true\n\tallowAnySHA1InWant = true\n"
        )

    def pick(self, choices: tuple[bytes, ...]) -> bytes:
        return self.rng.choice(choices).replace(b"CANARY", self._canary.encode())

    def put(self, kind: bytes, body: bytes) -> bytes:
        data = kind + b" %d\0" % len(body) + body
        oid = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        path = self.folder / "objects" / oid[:2] / oid[2:]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(zlib.compress(data, 1))
        return oid.encode()

    def tree(self, node: Node) -> bytes:
        """Write it, and all below; sometimes with entries twice, out of order or missing."""
        entries = []
        for name, (mode, content) in node.items():
            if isinstance(content, dict):
                oid = self.tree(content)
            elif mode in (b"160000", b"40000") and len(content) == 40:
                oid = content
            else:
                oid = self.put(b"blob", content)
            entries.append((name + (b"/" if mode == b"40000" else b""), mode, name, oid))
        entries.sort()
        # Git takes the name `a/b` in one tree for `b` in the tree `a` when it compares two.
        self.sorted &= not any(b"/" in name for name in node)
        if entries and self._shuffles and self.rng.random() < 0.03:
            self.rng.shuffle(entries)
            entries.append(self.rng.choice(entries))
            self.sorted = False
        if entries and self._shuffles and self.rng.random() < 0.005:
            entries[-1] = (*entries[-1][:3], b"0123456789" * 4)
        body = b"".join(
            b"%b %b\0%b" % (mode, name, bytes.fromhex(oid.decode()))
            for _, mode, name, oid in entries
        )
        return self.put(b"tree", body)

    def commit(self, node: Node, parent: bytes = b"") -> bytes:
        lines = [b"tree " + self.tree(node)]
        if parent:
            lines.append(b"parent " + parent)
        who = self.rng.choice((b"a <a@b> 1 +0000",) * 9 + (b"\x1b <> -1 x",))
        lines += [b"author " + who, b"committer " + who]
        oid = self.put(b"commit", b"\n".join([*lines, b"", self.pick(MESSAGES)]))
        (self.folder / "refs/heads/main").write_bytes(oid + b"\n")
        return oid

    def damage(self) -> None:
        """Cut or change one object, or a reference."""
        found = sorted(path for path in (self.folder / "objects").glob("??/*"))
        path = self.rng.choice(found)
        data = bytearray(path.read_bytes())
        if self.rng.random() < 0.5:
            data = data[: self.rng.randrange(len(data))]
        else:
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        what: tuple[Callable[[], object], ...] = (
            lambda: path.write_bytes(data),
            path.unlink,
            lambda: (self.folder / "HEAD").write_bytes(self.pick(NAMES) + b"\n"),
            lambda: (self.folder / "packed-refs").write_bytes(self.pick(BLOBS)),
            lambda: (self.folder / "refs/heads/main").write_bytes(self.pick(NAMES)),
            lambda: (self.folder / "refs/heads/\x9b31m").write_bytes(b"0" * 40),
            lambda: (self.folder / "config").write_bytes(self.pick(BLOBS)),
            lambda: (self.folder / "shallow").write_bytes(self.pick(NAMES)),
        )
        self.rng.choice(what)()


def add(node: Node, path: str, data: bytes) -> None:
    *folders, name = path.encode().split(b"/")
    for folder in folders:
        below = node.setdefault(folder, (b"40000", {}))[1]
        assert isinstance(below, dict)
        node = below
    node[name] = (b"100644", data)


def mutate(hostile: Hostile, node: Node) -> None:
    """Change one thing somewhere in a tree."""
    rng = hostile.rng
    while True:
        name = rng.choice(sorted(node)) if node else b""
        mode, content = node.get(name, (b"100644", b""))
        if isinstance(content, dict) and content and rng.random() < 0.8:
            node = content
            continue
        break
    what = rng.randrange(6)
    if what == 0:
        node[name] = (hostile.pick(MODES), content)
    elif what == 1:
        node[hostile.pick(NAMES)] = node.pop(name, (mode, content))
    elif what == 2:
        node[name] = (mode, hostile.pick(BLOBS))
    elif what == 3:
        node[hostile.pick(NAMES)] = (hostile.pick(MODES), hostile.pick(BLOBS))
    elif what == 4:
        node[name] = (mode, {hostile.pick(NAMES): (hostile.pick(MODES), hostile.pick(BLOBS))})
    else:
        node[hostile.pick(NAMES)] = (b"160000", b"0123456789" * 4)


def gitmodules(hostile: Hostile) -> bytes:
    rng = hostile.rng
    lines = []
    for _ in range(rng.randint(1, 3)):
        path, url = rng.choice(PATHS), rng.choice(URLS)
        name = rng.choice(("releases/00", path, "../x"))
        lines.append(f'[submodule "{name}"]\n\tpath = "{path}"\n\turl = "{url}"\n')
    text = "".join(lines) + rng.choice(("", "", "[", "[include]\n\tpath = CANARY/config\n"))
    return text.replace("CANARY", hostile._canary).encode()


def build(parent: Path, seed: int, canary: str) -> tuple[Path, bool]:
    """A store in `parent`, with two commits, and up to four things wrong in each.

    Tells also whether Git's differences mean something: names are names, in order, each once.
    """
    rng = random.Random(seed)
    hostile = Hostile(parent / "discogs.git", rng, canary)
    repositories = [hostile]
    node: Node = {}
    for number in rng.sample((1, 2, 3, 101, 10_001, 1_000_001), rng.randint(1, 4)):
        add(node, record_path(rng.choice(("releases", "artists")), number), record(number))
    if rng.random() < 0.4:
        part = Hostile(parent / "releases" / "00.git", rng, canary)
        repositories.append(part)
        inside: Node = {}
        add(inside, "00/00/1.json", record(1))
        for _ in range(rng.randint(0, 2)):
            mutate(part, inside)
        pin = part.commit(inside)
        node[b"releases"] = (b"40000", {b"00": (b"160000", pin)})
        node[b".gitmodules"] = (
            b"100644",
            gitmodules(hostile)
            if rng.random() < 0.7
            else b'[submodule "releases/00"]\npath = releases/00\nurl = ../releases/00.git\n',
        )
        if rng.random() < 0.5:
            node[hostile.pick(NAMES)] = (b"160000", pin)
    parent_commit = b""
    for _ in range(2):
        for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
            mutate(hostile, node)
        parent_commit = hostile.commit(node, parent_commit)
    is_sorted = all(made.sorted for made in repositories)
    if rng.random() < 0.2:
        hostile.damage()
    return hostile.folder, is_sorted


class Ears(logging.Handler):
    """What would be on stderr."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(_Formatter("export_changes.py", "text", ()))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class Outcome(NamedTuple):
    """What the exports of one store gave."""

    refused: bool
    records: int
    warned: bool


def judge(repository: str, mirrors: Path, *, composes: bool) -> Outcome:
    """Export it in all formats; AssertionError if an answer is not what it may be."""
    ears = Ears()
    log = logging.getLogger("discogs_crawler")
    log.addHandler(ears)
    propagate, log.propagate = log.propagate, False
    records = 0
    refused = False
    try:
        is_url = mirror.is_url(repository)
        source = (
            mirror.of_url(repository, mirrors)
            if is_url
            else mirror.of_folder(Path(repository), mirrors)
        )
        records = _exports(source, composes=composes)
    except CrawlerError as error:
        refused = True
        log.error("%s", error)
    finally:
        log.removeHandler(ears)
        log.propagate = propagate
    for line in ears.lines:
        assert not CONTROL.search(line), ascii(line)
        assert "\n" not in line, line
    return Outcome(refused, records, bool(ears.lines) and not refused)


def _exports(source: StoreSource, *, composes: bool) -> int:
    consumer = Consumer("fuzz", source.name, export_run.ALL, None)
    plan = export_run.plan(consumer, source, None)
    if plan is None:
        return 0
    whole: dict[tuple[str, int], object] = {}
    _apply(_written(plan, "jsonl"), whole)
    for form in ("names", "status"):
        for line in _written(plan, form):
            path = line.split("\t")[-1]
            assert parse_record_path(path), ascii(line)
    half = export_run.plan(consumer, source, 1)
    assert half is not None
    pieces: dict[tuple[str, int], object] = {}
    _apply(_written(half, "jsonl"), pieces)
    if half.new != plan.new:
        _apply(_written(plan._replace(old=half.new), "jsonl"), pieces)
    assert pieces == whole or not composes
    assert plan.old == EMPTY_TREE
    return len(whole)


def _written(plan: Plan, form: str) -> list[str]:
    blocks: list[bytes] = []
    export_run.write(plan, Form(form), blocks.append)
    text = b"".join(blocks).decode()
    assert not CONTROL.search(text), ascii(text)
    return text.split("\n")[:-1]


def _apply(lines: list[str], records: dict[tuple[str, int], object]) -> None:
    for line in lines:
        change = json.loads(line)
        assert list(change) == KEYS
        key = (change["kind"], change["id"])
        if change["status"] == "D":
            assert change["data"] is None
            records.pop(key, None)
        else:
            assert change["status"] in "AM"
            assert change["data"]["id"] == change["id"]
            assert formats.one_line(json.dumps(change["data"]).encode())
            records[key] = change["data"]


def fingerprint(folder: Path) -> str:
    """All that is in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path).encode(errors="surrogateescape") + b"\0")
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


def run(seeds: Iterator[int], folder: Path) -> list[Outcome]:
    """Build and judge a store for each seed; every other one by URL."""
    canary = folder / "canary.git"
    Hostile(canary, random.Random(0), "").commit({b"x": (b"100644", b"mine")})
    before = fingerprint(canary)
    outcomes = []
    for seed in seeds:
        parent = folder / "hostile"
        repository, composes = build(parent, seed, str(canary))
        inside = {path.name for path in folder.iterdir()}
        address = f"file://{repository}" if seed % 2 else str(repository)
        try:
            outcomes.append(judge(address, folder / "mirrors", composes=composes))
            assert fingerprint(canary) == before, "it wrote elsewhere"
            assert {path.name for path in folder.iterdir()} <= inside | {"mirrors"}
        except Exception:
            print(f"\nseed {seed}", file=sys.stderr)
            raise
        shutil.rmtree(parent)
        shutil.rmtree(folder / "mirrors", ignore_errors=True)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-store-") as folder:
        outcomes = run(iter(range(flags.seed, flags.seed + flags.inputs)), Path(folder))
    refused = sum(outcome.refused for outcome in outcomes)
    warned = sum(outcome.warned for outcome in outcomes)
    print(f"{len(outcomes):,} stores: {refused:,} refused, {warned:,} warned of")
    print(f"{sum(outcome.records for outcome in outcomes):,} records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
