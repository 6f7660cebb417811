"""A store of somebody who means harm: it neither harms nor deceives who reads it."""

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

from discogs_crawler import config
from discogs_crawler.api import cleaning
from discogs_crawler.errors import BadData, CrawlerError
from discogs_crawler.export import mirror
from discogs_crawler.export import run as export_run
from discogs_crawler.export.revisions import StoreSource
from discogs_crawler.export.run import Form
from discogs_crawler.ledger import database
from discogs_crawler.ledger.consumers import Consumer
from discogs_crawler.ledger.rows import Row
from discogs_crawler.maintenance import integrity, merge_branches, reclean
from discogs_crawler.records import KINDS
from discogs_crawler.store.layouts import Edit, open_store
from tests.conftest import Run
from tests.fuzz.store import Hostile, Node, add, fingerprint
from tests.plain_git import SingleStore, SubmoduleStore, git, record

SCRIPT = "export_changes.py"

# Parts of the names of those settings of Git that can name a program, a folder of programs, another
# file of settings, or a transport that is a program.
PROGRAMS = re.compile(
    "alias|askpass|browser|clean|cmd|command|driver|editor|external|filter|fsmonitor|helper|hook"
    "|httpd|include|insteadof|pager|path|process|program|proxy|receivepack|smudge|template|textconv"
    "|tool|trace2|tunnel|update|uploadpack|url|vcs|worktree|protocol|credential",
    re.IGNORECASE,
)


# Those that a Git which reads or serves a repository looks at. The long form tries the others.
LIKELY = (
    *("uploadpack.packObjectsHook", "core.alternateRefsCommand", "core.hooksPath", "include.path"),
    *("core.fsmonitor", "core.pager", "core.sshCommand", "core.gitProxy", "credential.helper"),
    *("remote.origin.uploadpack", "remote.origin.url", "remote.origin.vcs", "diff.external"),
    *("url.ext::PROGRAM x.insteadOf", "diff.x.textconv", "filter.x.smudge", "gpg.program"),
)


def settings_of_git() -> list[str]:
    """All that this Git knows, with names in the place of `<name>` and `*`."""
    listed = subprocess.run(["git", "help", "--config"], capture_output=True, text=True, check=True)
    names = re.findall(r"^\S+\.\S+$", listed.stdout, re.MULTILINE)
    names += ["filter.<driver>.process", "diff.<driver>.trustExitCode", "credential.<url>.helper"]
    places = {"<name>": "origin", "<url>": "http://127.0.0.1:9", "<base>": "ext::PROGRAM x"}
    for place, value in (*places.items(), ("<cmd>", "fetch"), ("*", "fetch")):
        names = [name.replace(place, value) for name in names]
    return [re.sub("<[^>]*>", "x", name) for name in names]


every_setting = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in LIKELY else pytest.mark.long)
        for name in settings_of_git()
        if PROGRAMS.search(name)
    ],
)


def exported(
    source: StoreSource, form: str = "jsonl", begin: str | None = None, *, previous: bool = False
) -> str:
    plan = export_run.plan(Consumer("test", source.name, export_run.ALL, begin), source, None)
    blocks: list[bytes] = []
    if plan is not None:
        export_run.write(plan, Form(form, previous=previous), blocks.append)
    return b"".join(blocks).decode()


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    return Hostile(tmp_path / "hostile" / "discogs.git", random.Random(0), "", shuffles=False)


@pytest.fixture
def canary(tmp_path: Path) -> SingleStore:
    """A repository of the reader that nobody has to do with."""
    store = SingleStore(tmp_path / "canary.git")
    store.commit({("releases", 1): record(1)})
    return store


@pytest.mark.parametrize("path", ["{canary}", "../../../canary.git", "..", "releases\nx", "x/.."])
def test_a_submodule_is_fetched_only_below_the_copy(
    tmp_path: Path, run: Run, canary: SingleStore, hostile: Hostile, path: str
) -> None:
    part = SingleStore(tmp_path / "hostile" / "part.git")
    pin = part.commit({("releases", 1): record(1, "evil")}).encode()
    path = path.format(canary=canary.folder)
    quoted = path.replace("\n", "\\n")
    text = f'[submodule "x"]\n\tpath = "{quoted}"\n\turl = ../part.git\n'
    node: Node = {b".gitmodules": (b"100644", text.encode()), path.encode(): (b"160000", pin)}
    add(node, "releases/00/00/00/2.json", record(2))
    hostile.commit(node)
    before = fingerprint(canary.folder)
    url = f"file://{hostile.folder}"
    done = run(SCRIPT, "--consumer", "test", "--repository", url, "--format", "ids")
    assert (done.returncode, done.stdout) == (0, "2\n")
    assert done.stderr.count("\n") == 1
    assert "files not exported because they are not records" in done.stderr
    assert fingerprint(canary.folder) == before


@pytest.mark.parametrize(
    "url",
    ["{canary}", "file://{canary}", "../../canary.git", "ext::touch x", "--upload-pack=x", "../-x"],
)
def test_a_submodule_is_fetched_only_from_beside_the_store(
    tmp_path: Path, canary: SingleStore, hostile: Hostile, url: str
) -> None:
    pin = canary.tip().encode()
    url = url.format(canary=canary.folder)
    text = f'[submodule "x"]\n\tpath = releases/00\n\turl = "{url}"\n'
    node: Node = {b".gitmodules": (b"100644", text.encode())}
    node[b"releases"] = (b"40000", {b"00": (b"160000", pin)})
    hostile.commit(node)
    with pytest.raises(BadData, match="names no repository beside it for releases/00"):
        mirror.of_url(f"file://{hostile.folder}", tmp_path / "mirrors")


@pytest.mark.parametrize(
    ("mode", "data"),
    [
        (b"120000", b"/etc/passwd"),
        (b"120000", record(1)),
        (b"100755", record(1)),
        (b"160000", b"0123456789" * 4),
        (b"40000", None),
        (b"100644", b""),
        (b"100644", b"no JSON"),
        (b"100644", b"[1]\n"),
        (b"100644", record(2)),
        (b"100644", b'{"id": "1"}\n'),
        (b"100644", b'{"id": 1}\n{"id": 1}\n'),
        (b"100644", b'{"id": 1, "x": NaN}\n'),
        (b"100644", b'{"id": 1,\r "x": 2}\n'),
        (b"100644", b'{"id": 1, "id": 1}\n'),
        (b"100644", b'{"id": 1, "x": "\xff"}\n'),
        (b"100644", b'{"id": 1, "x": "\x1b[31m"}\n'),
        (b"100644", b'{"id": 1}}\0{"kind":"releases","id":7,"status":"A","data":{"id":7}\n'),
        (b"100644", b"[" * 200_000),
        (b"100644", b'{"id": 1, "x": "' + b"x" * (1 << 24) + b'"}\n'),
    ],
)
def test_what_is_no_record_is_one_warning(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    hostile: Hostile,
    mode: bytes,
    data: bytes | None,
) -> None:
    node: Node = {}
    add(node, "releases/00/00/00/1.json", record(1))
    add(node, "releases/00/00/00/3.json", record(3))
    hostile.commit(node)
    before = mirror.of_folder(hostile.folder, tmp_path / "views")
    first = git(before.folder, "rev-parse", "HEAD")
    folder = node
    for name in (b"releases", b"00", b"00", b"00"):
        folder = folder[name][1]  # type: ignore[assignment]
    below: Node = {b"1.json": (b"100644", record(1))}
    folder[b"1.json"] = (mode, below if data is None else data)
    hostile.commit(node, first.encode())
    source = mirror.of_folder(hostile.folder, tmp_path / "views")
    lines = [json.loads(line) for line in exported(source).splitlines()]
    assert [(line["id"], line["status"], line["data"]["id"]) for line in lines] == [(3, "A", 3)]
    (warning,) = caplog.messages
    assert "files not exported because they are not records: 1; the first: releases/" in warning
    (gone,) = [json.loads(line) for line in exported(source, "jsonl", first).splitlines()]
    assert (gone["id"], gone["status"], gone["data"]) == (1, "D", None), "a consumer has it"
    (gone,) = map(json.loads, exported(source, "jsonl", first, previous=True).splitlines())
    assert (gone["status"], gone["previous"]["id"], gone["data"]) == ("D", 1, None)


@pytest.mark.parametrize("old", [b"", b"no JSON", record(7), b"x" * (1 << 24)])
def test_what_was_no_record_before_is_none(
    tmp_path: Path, hostile: Hostile, old: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Not passed on as the record before, and what takes its place is added."""
    node: Node = {}
    text = json.dumps({"id": 3, "x": "\x9b31m"}, ensure_ascii=False).encode()
    add(node, "releases/00/00/00/1.json", old)
    add(node, "releases/00/00/00/2.json", old)
    add(node, "releases/00/00/00/3.json", text)
    hostile.commit(node)
    first = git(mirror.of_folder(hostile.folder, tmp_path / "views").folder, "rev-parse", "HEAD")
    node = {}
    add(node, "releases/00/00/00/1.json", record(1))
    add(node, "releases/00/00/00/3.json", record(3))
    hostile.commit(node, first.encode())
    source = mirror.of_folder(hostile.folder, tmp_path / "views")
    printed = exported(source, "jsonl", first, previous=True)
    found = [
        (line["id"], line["status"], line["previous"])
        for line in map(json.loads, printed.splitlines())
    ]
    assert found == [(1, "A", None), (3, "M", json.loads(text))]
    assert "\x9b" not in printed
    assert caplog.messages == []


def test_what_a_terminal_obeys_is_escaped(tmp_path: Path, run: Run, hostile: Hostile) -> None:
    node: Node = {}
    text = "\x7f\x9b31m"
    add(node, "releases/00/00/00/1.json", json.dumps({"id": 1, "x": text}).encode())
    add(node, "releases/00/00/00/2.json", b'{"id": 2, "x": "' + text.encode() + b'"}')
    add(node, "releases/00/00/00/\x1b[31m\x9b\u202e.json", record(3))
    hostile.commit(node)
    for form, expected in (("status", 2), ("names", 2), ("ids", 2), ("jsonl", 2)):
        flags = ("--consumer", form, "--format", form, "-z")
        done = run(SCRIPT, *flags, "--repository", hostile.folder)
        assert done.returncode == 0
        assert not re.search(r"[\x01-\x1f\x7f-\x9f\u202e]", done.stdout + done.stderr[:-1])
        assert done.stderr.count("\n") == 1
        if form == "jsonl":
            lines = [json.loads(line) for line in done.stdout.split("\0")[:-1]]
            assert [line["data"]["x"] for line in lines] == [text, text]
            assert len(lines) == expected


def test_odd_names_in_a_remote_stop_no_worker_and_no_merge(
    tmp_path: Path, environment: dict[str, str], hostile: Hostile, caplog: pytest.LogCaptureFixture
) -> None:
    node: Node = {}
    add(node, "releases/00/00/00/1.json", record(1))
    first = hostile.commit(node)
    add(node, "releases/00/00/00/2.json", record(2))
    main = hostile.commit(node, first)
    folder = node
    for name in (b"releases", b"00", b"00", b"00"):
        folder = folder[name][1]  # type: ignore[assignment]
    del folder[b"2.json"]
    folder[b"3.json"] = (b"100644", record(3))
    folder[b"4.json"] = (b"120000", b"/etc/passwd")
    folder[b"\xff.json"] = (b"100644", b"x")
    folder[b"x\nM 100644 inline evil\ndata 1\n"] = (b"100644", b"x")
    node[b"releases"][1][b"x00"] = (b"40000", {b"\xff": (b"100644", b"x")})  # type: ignore[index]
    crawl = hostile.commit(node, first)
    for name in (b"main", b"crawl/a", b"crawl/\xff", "crawl/\x85\u2028x".encode(), b"crawl/-x"):
        path = hostile.folder / "refs" / "heads" / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(main if name == b"main" else crawl)
    environment["STORE_REMOTE"] = f"file://{hostile.folder}"
    settings = config.load(environ=environment)
    with database.open(settings.database) as ledger, ledger.transaction():
        ledger.save("releases", [Row(1)])
    store = open_store(settings)
    assert store.layout == "single"
    assert store.top.refresh() == main.decode()
    conflicts: list[tuple[str, int]] = []
    assert merge_branches.merge([store], [], conflicts.extend) == 1
    assert conflicts == []
    assert "branch a: files not merged because they are not records: 4;" in caplog.text
    assert list(store.ids("releases")) == [1, 2, 3]
    store.commit("releases", [Edit(4, record(4))], lambda: [4], {})
    assert list(integrity.records(store, store.tip())) == []
    assert (
        reclean.lost(store, {kind: cleaning.rules_for(settings, kind) for kind in KINDS}, 0) == {}
    )
    # What somebody pushed to the main branch itself is found, and stops nothing.
    (hostile.folder / "refs/heads/main").write_bytes(hostile.commit(node, store.tip().encode()))
    store.top.refresh()
    assert list(store.ids("releases")) == [1, 3, 4]
    store.commit("releases", [Edit(5, record(5))], lambda: [5], {})
    assert len(list(integrity.records(store, store.tip()))) == 4


@pytest.fixture(scope="module")
def partial_clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone without records, so that reading it also fetches."""
    folder = tmp_path_factory.mktemp("clone")
    upstream = SubmoduleStore(folder / "upstream" / "discogs.git")
    SingleStore(folder / "upstream.git").commit({("releases", n): record(n) for n in (1, 2)})
    upstream.commit({("releases", 1): record(1)})
    clone = folder / "clone.git"
    url = f"file://{folder / 'upstream.git'}"
    git(folder, "clone", "--quiet", "--bare", "--filter=blob:none", url, str(clone))
    return clone


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that leaves a trace, also as any hook."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    program = hooks / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/trace\nexit 1\n")
    program.chmod(0o755)
    for hook in ("post-checkout", "reference-transaction", "post-index-change", "pre-auto-gc"):
        (hooks / hook).symlink_to(program)
    return program


def configure(folder: Path, name: str, program: Path) -> None:
    """Let this setting of the repository name the program."""
    value = str(program)
    if name.startswith("include"):
        value = str(folder / "included")
        (folder / "included").write_text(f'[remote "origin"]\n\tuploadpack = {program}\n')
    elif name in ("core.hooksPath", "init.templateDir"):
        value = str(program.parent)
    elif name.startswith(("alias", "submodule")):
        value = f"!{program}"
    elif name.endswith(("insteadOf", "pushInsteadOf")):
        value = "file://"
    elif name.endswith("origin.url"):
        value = f"ext::{program} x"
    elif name.endswith("vcs"):
        value = "ext"
    config = ["config", "--file", str(folder / "config")]
    git(folder, *config, "protocol.ext.allow", "always")
    if name in ("core.sshCommand", "core.gitProxy", "ssh.variant"):
        url = "git://127.0.0.1:9/x" if name == "core.gitProxy" else "ssh://127.0.0.1:9/x"
        git(folder, *config, "remote.origin.url", url)
    git(folder, *config, name.replace("PROGRAM", str(program)), value)


def test_nothing_is_written_into_a_folder(
    tmp_path: Path, partial_clone: Path, canary: SingleStore
) -> None:
    """What its clone without records lacks is kept elsewhere."""
    folder = tmp_path / "clone.git"
    shutil.copytree(partial_clone, folder)
    elsewhere = canary.folder / "objects" / "pack"
    for path in (folder / "objects" / "pack").iterdir():
        shutil.copy(path, elsewhere)
    shutil.rmtree(folder / "objects" / "pack")
    (folder / "objects" / "pack").symlink_to(elsewhere)
    before = fingerprint(folder), fingerprint(canary.folder)
    assert exported(mirror.of_folder(folder, tmp_path / "views")).count("\n") == 2
    assert (fingerprint(folder), fingerprint(canary.folder)) == before


@every_setting
def test_no_setting_of_a_folder_runs_a_program(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    partial_clone: Path,
    program: Path,
    name: str,
) -> None:
    folder = tmp_path / "clone.git"
    shutil.copytree(partial_clone, folder)
    configure(folder, name, program)
    monkeypatch.setenv("GIT_SSH", "/bin/false")
    with contextlib.suppress(CrawlerError):
        exported(mirror.of_folder(folder, tmp_path / "views"))
    assert not (tmp_path / "trace").exists()


@every_setting
def test_no_setting_of_a_store_on_this_machine_runs_a_program(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    partial_clone: Path,
    program: Path,
    name: str,
) -> None:
    """Git serves it with its configuration, and gets for us what it lacks."""
    folder = tmp_path / "clone.git"
    shutil.copytree(partial_clone, folder)
    git(folder, "config", "uploadpack.allowFilter", "true")
    configure(folder, name, program)
    monkeypatch.setenv("GIT_SSH", "/bin/false")
    with contextlib.suppress(CrawlerError):
        exported(mirror.of_url(f"file://{folder}", tmp_path / "mirrors"))
    assert not (tmp_path / "trace").exists()


def bomb(hostile: Hostile, leaf: Node, levels: int) -> tuple[bytes, bytes]:
    """A folder whose 100 folders are all the same one, and so on: 100 ** levels leaves."""
    tree = hostile.tree(leaf)
    for _ in range(levels):
        tree = hostile.tree({b"%02d" % number: (b"40000", tree) for number in range(100)})
    return b"40000", tree


@pytest.mark.parametrize("form", ["names", "jsonl"])
@pytest.mark.parametrize("place", ["x", "releases/x", "releases/00/x", "releases/00/00/00/1.x"])
def test_trees_that_nest_and_repeat_are_not_entered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, hostile: Hostile, place: str, form: str
) -> None:
    node: Node = {}
    add(node, "releases/00/00/00/1.json", record(1))
    add(node, place, b"")
    *folders, name = place.encode().split(b"/")
    folder = node
    for part in folders:
        folder = folder[part][1]  # type: ignore[assignment]
    folder[name] = bomb(hostile, {b"1.json": (b"100644", record(1))}, 10)
    first = hostile.commit(node).decode()
    del folder[name]
    hostile.commit(node, first.encode())
    url = f"file://{hostile.folder}"
    source = mirror.of_url(url, tmp_path / "mirrors")
    assert exported(source._replace(tip=first), form).count("\n") == 1
    (warning,) = caplog.messages
    assert f"files not exported because they are not records: 1; the first: {place}" in warning
    assert exported(source, form, first) == ""


def test_trees_that_repeat_in_place_are_refused(tmp_path: Path, run: Run, hostile: Hostile) -> None:
    leaf: Node = {b"1.json": (b"100644", record(1))}
    segments = {b"%02d" % n: bomb(hostile, leaf, 2) for n in range(100)}
    hostile.commit({kind.encode(): (b"40000", dict(segments)) for kind in KINDS})
    for form in ("ids", "jsonl"):
        flags = ("--consumer", form, "--format", form, "--repository", hostile.folder)
        done = run(SCRIPT, *flags)
        assert done.returncode == 65
        assert re.fullmatch(
            r"export_changes.py: .*: not a record, and neither are 10,000 others.*\n", done.stderr
        )


def test_a_folder_without_end_is_refused(tmp_path: Path, hostile: Hostile) -> None:
    nothing = b"0123456789" * 4
    many: Node = {b"%05d" % number: (b"160000", nothing) for number in range(20_000)}
    for node in (many, {b"releases": (b"40000", {b"00": (b"40000", many)})}):
        hostile.commit(node)  # type: ignore[arg-type]
        source = mirror.of_folder(hostile.folder, tmp_path / "views")
        with pytest.raises(BadData, match="a folder with 10,000 entries"):
            exported(source)


def test_what_is_larger_than_any_record_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, hostile: Hostile
) -> None:
    """By its head it has a terabyte; whoever reads on finds that it ends."""
    node: Node = {}
    add(node, "releases/00/00/00/1.json", b"giant")
    add(node, "releases/00/00/00/2.json", record(2))
    first = hostile.commit(node)
    oid = hostile.put(b"blob", b"giant").decode()
    giant = hostile.folder / "objects" / oid[:2] / oid[2:]
    giant.write_bytes(zlib.compress(b"blob 1099511627776\0" + bytes(100)))
    source = mirror.of_folder(hostile.folder, tmp_path / "views")
    assert [json.loads(line)["id"] for line in exported(source).splitlines()] == [2]
    (warning,) = caplog.messages
    assert "files not exported because they are not records: 1;" in warning
    add(node, "releases/00/00/00/1.json", record(1))
    hostile.commit(node, first)
    printed = exported(source, "jsonl", first.decode(), previous=True)
    assert [json.loads(line)["previous"] for line in printed.splitlines()] == [None]


def test_a_list_of_submodules_without_end_is_refused(tmp_path: Path, hostile: Hostile) -> None:
    text = b'[submodule "x"]\n\tpath = releases/00\n\turl = ../x.git\n' * 50_000
    node: Node = {b".gitmodules": (b"100644", text)}
    node[b"releases"] = (b"40000", {b"00": (b"160000", b"0123456789" * 4)})
    hostile.commit(node)
    with pytest.raises(BadData, match="gitmodules is too large"):
        mirror.of_url(f"file://{hostile.folder}", tmp_path / "mirrors")
