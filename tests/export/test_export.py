"""What an export prints, and that applying it always gives what the store holds."""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discogs_crawler.errors import BadData, Unavailable
from discogs_crawler.export import formats
from discogs_crawler.export import run as export_run
from discogs_crawler.export.formats import Change
from discogs_crawler.export.revisions import LeftOut, StoreSource, Subtree
from discogs_crawler.export.run import Form
from discogs_crawler.ledger.consumers import Consumer
from discogs_crawler.store import git_process
from discogs_crawler.store.git_process import GitFailed
from tests.conftest import program
from tests.plain_git import Record, SingleStore, SubmoduleStore, git, record

Store = SingleStore | SubmoduleStore
LAYOUTS: Mapping[str, Callable[[Path], Store]] = {
    "single": SingleStore,
    "submodules": SubmoduleStore,
}


@pytest.fixture(params=LAYOUTS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return LAYOUTS[request.param](tmp_path / "store" / "discogs.git")


def source_of(store: Store) -> StoreSource:
    return StoreSource(store.folder, f"refs/heads/{store.branch}", str(store.folder))


def exported(
    store: Store,
    form: Form,
    begin: str | None = None,
    *,
    kind: str = "releases",
    limit: int | None = None,
) -> tuple[bytes, str | None]:
    """The bytes of one export that begins at a revision, and where it ended."""
    plan = export_run.plan(Consumer("test", "", kind, begin), source_of(store), limit)
    if plan is None:
        return b"", begin
    blocks: list[bytes] = []
    export_run.write(plan, form, blocks.append)
    return b"".join(blocks), plan.new


JSON_BOTH = Form("jsonl", previous=True)


def apply(lines: bytes, records: dict[Record, object]) -> None:
    """What a consumer does with `jsonl`."""
    for line in lines.splitlines():
        change = json.loads(line)
        key = (change["kind"], change["id"])
        assert change.get("previous", records.get(key)) == records.get(key)
        if change["data"] is None:
            assert change["status"] == "D"
            del records[key]
        else:
            assert change["status"] == ("M" if key in records else "A")
            records[key] = change["data"]


def parsed(records: dict[Record, bytes]) -> dict[Record, object]:
    return {key: json.loads(data) for key, data in records.items()}


def some_history(store: Store) -> str:
    first = store.commit(
        {("releases", n): record(n) for n in (1, 2, 10, 13_999_999, 14_000_001, 107_000_000)},
        readme="what this is",
    )
    store.commit(
        {
            ("releases", 2): None,
            ("releases", 10): record(10, "new"),
            ("releases", 15_000_000): record(15_000_000),
            ("masters", 7): record(7),
        },
        readme="what this is now",
    )
    return first


def test_each_format_tells_what_was_added_modified_and_deleted(store: Store) -> None:
    first = some_history(store)
    paths = ["releases/00/00/00/10.json", "releases/00/00/00/2.json"]
    paths += ["releases/15/00/00/15000000.json"]
    assert exported(store, Form("names"), first)[0].decode().splitlines() == paths
    status = exported(store, Form("status"), first)[0].decode().splitlines()
    assert status == ["M\t" + paths[0], "D\t" + paths[1], "A\t" + paths[2]]
    assert exported(store, Form("ids"), first)[0] == b"10\n2\n15000000\n"
    lines = exported(store, Form("jsonl"), first)[0].splitlines()
    assert json.loads(lines[1]) == {
        "kind": "releases",
        "id": 2,
        "status": "D",
        "revision": store.tip(),
        "data": None,
    }
    assert json.loads(lines[0])["data"] == json.loads(record(10, "new"))


@pytest.mark.parametrize("nul", [False, True])
@pytest.mark.parametrize("output_format", formats.COLUMNS)
def test_git_prints_what_the_columns_of_a_format_say(
    store: Store, monkeypatch: pytest.MonkeyPatch, output_format: str, nul: bool
) -> None:
    first = some_history(store)
    printed = exported(store, Form(output_format, nul), first, kind="all")
    monkeypatch.setattr(formats, "_PRINTED_BY_GIT", ())
    assert exported(store, Form(output_format, nul), first, kind="all") == printed


def test_a_new_format_is_one_row_of_columns(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = some_history(store)
    row = {"tsv": lambda change: [change.status, change.kind, str(change.id)]}
    monkeypatch.setattr(formats, "COLUMNS", formats.COLUMNS | row)
    lines = exported(store, Form("tsv"), first)[0].decode().splitlines()
    assert lines == ["M\treleases\t10", "D\treleases\t2", "A\treleases\t15000000"]


@pytest.mark.parametrize("output_format", formats.COLUMNS)
def test_a_format_without_the_kind_is_noted_as_such(output_format: str) -> None:
    columns = formats.COLUMNS[output_format]
    release, artist = (columns(Change(kind, 1, "M", "")) for kind in ("releases", "artists"))
    assert (release == artist) == (output_format in formats.WITHOUT_KIND)


@pytest.mark.parametrize("output_format", formats.FORMATS)
def test_nul_ends_every_line_instead_of_a_line_feed(store: Store, output_format: str) -> None:
    some_history(store)
    plain = exported(store, Form(output_format))[0]
    nul = exported(store, Form(output_format, nul=True))[0]
    expected = plain.replace(b"\n", b"\0")
    if output_format != "jsonl":
        expected = expected.replace(b"\t", b"\0")
    assert nul == expected


@pytest.mark.parametrize("options", [(), ("-z",)])
def test_names_are_those_of_git_diff_byte_for_byte(tmp_path: Path, options: tuple[str]) -> None:
    # Without --no-renames Git takes a record that is gone and a similar new one for a renamed
    # file, and names only the new one.
    store = SingleStore(tmp_path / "discogs.git")
    first = some_history(store)
    git_diff = subprocess.run(
        [
            "git",
            "diff",
            "--no-renames",
            "--name-only",
            *options,
            f"{first}..main",
            "--",
            "releases/",
        ],
        cwd=store.folder,
        capture_output=True,
        check=True,
    ).stdout
    assert git_diff
    assert exported(store, Form("names", nul=bool(options)), first)[0] == git_diff


def test_all_kinds_come_in_the_order_of_their_paths(store: Store) -> None:
    some_history(store)
    lines = exported(store, Form("names"), kind="all")[0].splitlines()
    assert lines == sorted(lines)
    assert {line.partition(b"/")[0] for line in lines} == {b"masters", b"releases"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.booleans(),
)
def test_a_record_on_one_line_is_the_same_json(value: object, ascii_only: bool) -> None:
    stored = json.dumps({"v": value}, indent=2, sort_keys=True, ensure_ascii=ascii_only) + "\n"
    line = formats.one_line(stored.encode("utf-8", "surrogatepass"))
    assert b"\n" not in line
    assert json.loads(line.decode("utf-8", "surrogatepass")) == {"v": value}


def test_records_larger_than_any_buffer_and_more_than_a_pipe_holds(store: Store) -> None:
    big = record(1, "x" * 3_000_000)
    numbers = range(2, 4_000)
    store.commit({("releases", 1): big} | {("releases", n): record(n) for n in numbers})
    found: dict[Record, object] = {}
    apply(exported(store, Form("jsonl"))[0], found)
    assert len(found) == 3_999
    assert found["releases", 1] == json.loads(big)


KEYS = [("releases", n) for n in (1, 2, 100, 999_999, 1_000_000, 2_000_007)] + [("artists", 1)]
CHANGES = st.dictionaries(
    st.sampled_from(KEYS), st.none() | st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5
)
# Records changed; on a side branch that is merged at once; a technical commit; then an export?
STEPS = st.lists(
    st.tuples(CHANGES, st.sampled_from(["plain", "branch", "technical"]), st.booleans()),
    min_size=1,
    max_size=8,
)


def contents(changes: dict[Record, str | None]) -> dict[Record, bytes | None]:
    return {key: None if text is None else record(key[1], text) for key, text in changes.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(steps=STEPS, limit=st.none() | st.integers(1, 3), previous=st.booleans())
def test_exports_over_any_split_of_any_history_give_the_tip(
    layout: str,
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[dict[Record, str | None], str, bool]],
    limit: int | None,
    previous: bool,
) -> None:
    form = Form("jsonl", previous=previous)
    store = LAYOUTS[layout](tmp_path_factory.mktemp("history") / "discogs.git")
    store.commit({KEYS[0]: record(1, "first")})
    records: dict[Record, object] = {}
    revision: str | None = None
    for number, (changed, how, export_now) in enumerate(steps):
        if how == "branch" and isinstance(store, SingleStore):
            branch = f"crawl/{number}"
            git(store.folder, "branch", branch, "main")
            store.commit({("labels", number + 1): record(1)})
            store.commit(contents(changed), branch=branch)
            store.merge(branch)
        else:
            store.commit(contents(changed), technical=how == "technical")
        if export_now:
            lines, revision = exported(store, form, revision, kind="all", limit=limit)
            apply(lines, records)
    while revision != store.tip():
        lines, revision = exported(store, form, revision, kind="all", limit=limit)
        apply(lines, records)
    assert records == parsed(store.records())
    whole: dict[Record, object] = {}
    apply(exported(store, form, kind="all")[0], whole)
    assert whole == records


def test_each_line_has_the_record_before(store: Store) -> None:
    first = some_history(store)
    lines = [json.loads(line) for line in exported(store, JSON_BOTH, first)[0].splitlines()]
    found = [(line["status"], line["id"], line["previous"], line["data"]) for line in lines]
    assert found == [
        ("M", 10, json.loads(record(10)), json.loads(record(10, "new"))),
        ("D", 2, json.loads(record(2)), None),
        ("A", 15_000_000, None, json.loads(record(15_000_000))),
    ]
    plain = [json.loads(line) for line in exported(store, Form("jsonl"), first)[0].splitlines()]
    for line in lines:
        del line["previous"]
    assert lines == plain


def test_more_records_before_than_a_pipe_holds(store: Store) -> None:
    records: dict[Record, object] = {}
    revision = None
    for text in ("a", "x" * 2_000_000, "b"):
        store.commit({("releases", 1): record(1, text)})
        store.commit({("releases", n): record(n, text[:300]) for n in range(2, 1_000)})
        lines, revision = exported(store, JSON_BOTH, revision)
        apply(lines, records)
    assert records == parsed(store.records())


def test_limit_counts_commits_along_first_parents(tmp_path: Path) -> None:
    store = SingleStore(tmp_path / "discogs.git")
    revisions = [store.commit({("releases", n): record(n)}) for n in (1, 2)]
    git(store.folder, "branch", "crawl/a")
    for n in (3, 4, 5):
        store.commit({("releases", n): record(n)}, branch="crawl/a")
    store.commit({("releases", 6): record(6)})
    revisions += [git(store.folder, "rev-parse", "main"), store.merge("crawl/a")]
    revision, ids = None, []
    for expected in revisions:
        printed, revision = exported(store, Form("ids"), revision, limit=1)
        assert revision == expected
        ids.append(printed.decode().split())
    assert ids == [["1"], ["2"], ["6"], ["3", "4", "5"]]


def test_technical_commits_can_be_left_out(store: Store) -> None:
    first = store.commit({("releases", n): record(n) for n in (1, 2, 3)})
    second = store.commit({("releases", 1): record(1, "a")})
    store.commit({("releases", n): record(n, "clean") for n in (1, 2, 3)}, technical=True)
    store.commit({("releases", 2): record(2, "b")})
    store.commit({("releases", 3): None})
    lines, end = exported(store, Form("jsonl", skip_technical=True), first)
    told = [json.loads(line) for line in lines.splitlines()]
    assert [(c["id"], c["status"], c["revision"]) for c in told] == [
        (1, "M", second),
        (2, "M", store.tip()),
        (3, "D", store.tip()),
    ]
    assert end == store.tip()


def test_only_technical_commits_are_nothing_but_move_the_place(store: Store) -> None:
    first = store.commit({("releases", 1): record(1)})
    tip = store.commit({("releases", 1): record(1, "clean")}, technical=True)
    assert exported(store, Form("names", skip_technical=True), first) == (b"", tip)


def test_a_rewritten_history_is_exported_as_what_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SingleStore(tmp_path / "discogs.git")
    store.commit({("releases", 1): record(1), ("releases", 2): record(2)})
    old = store.commit({("releases", 2): None, ("releases", 3): record(3)})
    records: dict[Record, object] = {}
    apply(exported(store, Form("jsonl"))[0], records)
    git(store.folder, "update-ref", "-d", "refs/heads/main")
    store.commit({("releases", 2): record(2), ("releases", 9): record(9)})
    apply(exported(store, Form("jsonl"), old)[0], records)
    assert records == parsed(store.records())
    assert "history was rewritten" in caplog.text


def test_what_a_rewritten_history_took_back_is_no_technical_change(tmp_path: Path) -> None:
    store = SingleStore(tmp_path / "discogs.git")
    first = store.commit({("releases", n): record(n) for n in (1, 2)})
    old = store.commit({("releases", 2): None, ("releases", 3): record(3)})
    records: dict[Record, object] = {}
    apply(exported(store, Form("jsonl"))[0], records)
    git(store.folder, "update-ref", "refs/heads/main", first)
    form = Form("jsonl", skip_technical=True)
    put_back = dict(records)
    apply(exported(store, form, old)[0], put_back)
    assert put_back == parsed(store.records())
    store.commit({("releases", 1): record(1, "clean")}, technical=True)
    store.commit({("releases", 4): record(4)})
    apply(exported(store, form, old)[0], records)
    assert records == parsed(store.records()), "the difference as a whole"
    rewritten = store.commit({("releases", 1): record(1, "again")}, technical=True)
    assert exported(store, form, rewritten)[0] == b""
    git(store.folder, "update-ref", "-d", "refs/heads/main")
    for number in (1, 4):
        store.commit({("releases", number): record(number)})
    consumer = Consumer("x", "", "releases", rewritten)
    plan = export_run.plan(consumer, source_of(store), 1)
    assert plan is not None
    assert plan.new == store.tip(), "--limit would take back what comes later"


def test_the_first_export_has_all_records_as_they_are(tmp_path: Path) -> None:
    store = SingleStore(tmp_path / "discogs.git")
    store.commit({("releases", n): record(n) for n in (1, 2)})
    store.commit({("releases", 1): record(1, "clean")}, technical=True)
    records: dict[Record, object] = {}
    apply(exported(store, Form("jsonl", skip_technical=True))[0], records)
    assert records == parsed(store.records())


def test_a_shallow_clone_that_begins_with_a_technical_commit_has_all_records(
    tmp_path: Path,
) -> None:
    store = SingleStore(tmp_path / "upstream.git")
    store.commit({("releases", n): record(n) for n in (1, 2)})
    store.commit({("releases", 1): record(1, "clean")}, technical=True)
    shallow = tmp_path / "shallow.git"
    git(tmp_path, "clone", "-q", "--bare", "--depth=1", f"file://{store.folder}", str(shallow))
    plan = export_run.plan(Consumer("x", "", "releases"), StoreSource(shallow, "HEAD", ""), None)
    assert plan is not None
    blocks: list[bytes] = []
    export_run.write(plan, Form("ids", skip_technical=True), blocks.append)
    assert b"".join(blocks) == b"1\n2\n"


def test_a_revision_that_is_gone_says_how_to_begin_again(tmp_path: Path) -> None:
    store = SingleStore(tmp_path / "discogs.git")
    store.commit({("releases", 1): record(1)})
    with pytest.raises(BadData, match="--consumer test --reset start"):
        exported(store, Form(), "1" * 40)


@pytest.mark.parametrize("foreign", [False, True])
def test_a_commit_that_a_submodule_lacks_is_no_empty_difference(
    tmp_path: Path, foreign: bool
) -> None:
    """Of one segment only an older copy is left; then others are committed there."""
    store = SubmoduleStore(tmp_path / "store" / "discogs.git")
    first = store.commit({("releases", 1): record(1)})
    segment = tmp_path / "store" / "releases" / "00.git"
    shutil.copytree(segment, tmp_path / "older.git")
    lost = store.commit({("releases", 2): record(2)})
    shutil.rmtree(segment)
    (tmp_path / "older.git").rename(segment)
    source = source_of(store)._replace(foreign=foreign)

    def export(begin: str) -> None:
        plan = export_run.plan(Consumer("test", "", "releases", begin), source, None)
        assert plan
        export_run.write(plan, Form("names"), lambda _: None)

    with pytest.raises(BadData, match="or restore a newer copy"):
        export(first)
    store.commit({("releases", 3): record(3)})
    with pytest.raises(BadData, match="begin again with --reset"):
        export(lost)


def test_a_record_whose_object_is_gone_is_named(tmp_path: Path) -> None:
    store = SingleStore(tmp_path / "discogs.git")
    store.commit({("releases", 1): record(1)})
    blob = git(store.folder, "rev-parse", "main:releases/00/00/00/1.json")
    pack = next((store.folder / "objects" / "pack").glob("*.pack"), None)
    if pack is not None:
        data = pack.read_bytes()
        for file in (store.folder / "objects" / "pack").iterdir():
            file.unlink()
        git(store.folder, "unpack-objects", "-q", given=data)
    (store.folder / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(BadData, match=f"releases 1: object {blob} is missing"):
        exported(store, Form("jsonl"))


def test_a_shallow_clone_exports_all_it_has(tmp_path: Path) -> None:
    store = SingleStore(tmp_path / "discogs.git")
    old = store.commit({("releases", 1): record(1)})
    store.commit({("releases", 2): record(2)})
    shallow = tmp_path / "shallow.git"
    git(tmp_path, "clone", "-q", "--bare", "--depth=1", f"file://{store.folder}", str(shallow))
    source = StoreSource(shallow, "HEAD", "shallow")
    plan = export_run.plan(Consumer("x", "", "releases"), source, None)
    assert plan is not None
    blocks: list[bytes] = []
    export_run.write(plan, Form("ids"), blocks.append)
    assert b"".join(blocks) == b"1\n2\n"
    with pytest.raises(BadData, match="no revision"):
        export_run.plan(Consumer("x", "", "releases", old), source, None)


def test_a_file_that_is_no_record_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SingleStore(tmp_path / "discogs.git")
    store.commit({("releases", 1): record(1)})
    blob = git(store.folder, "rev-parse", "main:releases/00/00/00/1.json")
    stream = "commit refs/heads/main\ncommitter a <a@b> 1 +0000\ndata 0\nfrom main^0\n"
    stream += f"M 100644 {blob} releases/00/00/00/01.json\nM 100644 {blob} releases/x.txt\n"
    git(store.folder, "fast-import", "--quiet", given=stream.encode())
    lines = exported(store, Form("jsonl"))[0].splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1]
    (warning,) = caplog.messages
    assert warning.endswith(
        "files not exported because they are not records: 2; the first: releases/00/00/00/01.json"
    )


def test_a_git_is_not_waited_for_when_another_one_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for more to do, as long as its pipe is open."""
    script = f"mkdir {tmp_path}/first 2>&- && kill -9 $$\nexec cat"
    monkeypatch.setenv("PATH", program(tmp_path / "bin", "git", script))
    monkeypatch.setattr(git_process, "GOING_S", 0.2)
    with pytest.raises(Unavailable, match="killed by signal 9"), contextlib.ExitStack() as stack:
        first = stack.enter_context(git_process.running(tmp_path, "cat-file"))
        while not (tmp_path / "first").exists():
            time.sleep(0.01)
        stack.enter_context(git_process.running(tmp_path, "cat-file"))
        first.stdin.write(b"x" * 10_000_000)


@pytest.mark.parametrize(
    ("ending", "raised", "words"),
    [
        ("echo 'fatal: no memory' >&2; exit 128", GitFailed, "fatal: no memory"),
        ("kill -9 $$", Unavailable, "killed by signal 9"),
    ],
)
@pytest.mark.parametrize("output_format", formats.FORMATS)
def test_a_git_that_dies_is_neither_an_end_nor_a_reader_that_went(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    output_format: str,
    ending: str,
    raised: type[Exception],
    words: str,
) -> None:
    script = f"echo releases/00/00/00/1.json\n{ending}"
    monkeypatch.setenv("PATH", program(tmp_path / "bin", "git", script))
    segment = Subtree(tmp_path, "releases/00/", "1" * 40, "2" * 40)
    with pytest.raises(raised, match=words):
        list(formats.blocks(output_format, segment, "3" * 40, LeftOut(), end=b"\n"))
    with pytest.raises(raised, match=words), git_process.running(tmp_path, "cat-file") as pipes:
        pipes.stdin.write(b"x" * 10_000_000)
