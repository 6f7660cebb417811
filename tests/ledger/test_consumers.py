"""A consumer's place moves in one transaction from where it was, or not at all."""

import multiprocessing
import sqlite3
from pathlib import Path

import pytest
import sqlite_utils

from discogs_crawler.errors import BadData, TryLater, Unavailable, UsageError
from discogs_crawler.ledger import consumers
from discogs_crawler.ledger.consumers import Consumer

ONE, TWO, THREE = ("1" * 40, "2" * 40, "3" * 40)


def known(name: str = "mirror", revision: str | None = None) -> Consumer:
    return Consumer(name, "/store/discogs.git", "releases", revision)


def test_the_tables_can_be_made_in_the_ledger_any_number_of_times(tmp_path: Path) -> None:
    db = sqlite_utils.Database(tmp_path / "crawler.db")
    for _ in range(2):
        consumers.create_tables(db)
    assert db["consumers"].strict
    assert db["consumers_history"].strict
    with consumers.opened(tmp_path / "crawler.db") as connection:
        assert consumers.everyone(connection) == []


def test_a_place_moves_and_its_history_says_how(tmp_path: Path) -> None:
    with consumers.opened(tmp_path / "places.db") as db:
        consumers.add(db, known())
        consumers.move(db, known(), "export", ONE, records=7)
        first = consumers.get(db, "mirror")
        consumers.move(db, first, "export", TWO, records=2)
        consumers.move(db, consumers.get(db, "mirror"), "reset", None)
        last = consumers.get(db, "mirror")
        assert (last.revision, last.records) == (None, 9)
        rows = db.execute("SELECT event, began, revision, records FROM consumers_history")
        assert rows.fetchall() == [
            ("new", None, None, 0),
            ("export", None, ONE, 7),
            ("export", ONE, TWO, 2),
            ("reset", TWO, None, 0),
        ]


def test_a_place_that_somebody_else_moved_is_not_moved_again(tmp_path: Path) -> None:
    with consumers.opened(tmp_path / "places.db") as db:
        consumers.add(db, known(revision=ONE))
        consumers.move(db, known(revision=ONE), "export", TWO)
        with pytest.raises(TryLater, match="moved by another process"):
            consumers.move(db, known(revision=ONE), "export", THREE)
        assert consumers.get(db, "mirror").revision == TWO
        assert db.execute("SELECT count(*) FROM consumers_history").fetchone() == (2,)


def test_a_history_written_anew_takes_all_consumers_along(tmp_path: Path) -> None:
    with consumers.opened(tmp_path / "places.db") as db:
        for name, revision in (("a", ONE), ("b", TWO), ("c", None), ("d", ONE)):
            consumers.add(db, known(name, revision))
        assert consumers.move_all(db, {ONE: THREE}) == 2
        places = [consumer.revision for consumer in consumers.everyone(db)]
        assert places == [THREE, TWO, None, THREE]


def test_an_unknown_consumer_gets_a_hint(tmp_path: Path) -> None:
    with consumers.opened(tmp_path / "places.db") as db:
        consumers.add(db, known("mirror"))
        with pytest.raises(UsageError, match="did you mean mirror"):
            consumers.get(db, "miror")
        with pytest.raises(UsageError, match="--list"):
            consumers.get(db, "x")


@pytest.mark.parametrize("name", ["", ".hidden", "-x", "a/b", "a b", "ä", "a\n", "x" * 65])
def test_a_name_that_could_be_something_else_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        consumers.check_name(name)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    for name, way_out in (
        ("crawler.db", "seed_queue.py --rebuild"),
        ("c.consumers.db", "start over"),
    ):
        (tmp_path / name).write_bytes(b"not a database, but long enough" * 100)
        with pytest.raises(BadData, match=rf"{name}: .*file is not a database.*{way_out}"):
            with consumers.opened(tmp_path / name):
                pass


def _open(path: Path) -> int:
    with consumers.opened(path) as db:
        return len(consumers.everyone(db))


def test_many_can_make_the_file_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        for number in range(12):
            path = tmp_path / f"places{number}.db"
            assert pool.map(_open, [path] * 16, chunksize=1) == [0] * 16


def test_a_failed_transaction_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "places.db"
    with consumers.opened(path) as db:
        consumers.add(db, known())
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON consumers_history BEGIN"
            " SELECT raise(ROLLBACK, 'disk full'); END"
        )
    with pytest.raises(Unavailable, match="disk full"), consumers.opened(path) as db:
        consumers.move(db, known(), "export", ONE)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT revision FROM consumers").fetchone() == (None,)
