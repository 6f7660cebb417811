"""Lanes: what they do when Git complains."""

import os
import threading
from pathlib import Path

from discogs_crawler.api import cleaning
from discogs_crawler.config import Settings
from discogs_crawler.importing.cut import Record
from discogs_crawler.importing.lanes import Lanes, Setup
from discogs_crawler.store import git
from tests.plain_git import git as plain_git


def test_a_git_that_complains_at_each_blob_is_no_hang(tmp_path: Path, settings: Settings) -> None:
    """It does so when the index of a pack is damaged: a pipe was full after 650 blobs."""
    repository = git.create(tmp_path / "discogs.git", "main", "single").path
    blobs = b"".join(b"blob\ndata 3\n%03d\n" % number for number in range(200))
    plain_git(repository, "fast-import", "--quiet", given=blobs)
    for index in (repository / "objects" / "pack").glob("*.idx"):
        index.chmod(0o644)
        os.truncate(index, 0)
    rules = cleaning.rules_for(settings, "labels")
    records = [
        Record(number, 0, b"<label><id>%d</id><name>%b</name></label>" % (number, b"x" * 2_000))
        for number in range(1, 3_001)
    ]
    answers = []

    def convert() -> None:
        with Lanes(Setup("labels", rules, ["20261101"]), 10) as lanes:
            lanes.put(repository, records)
            answers.extend(lanes.finish())

    working = threading.Thread(target=convert, daemon=True)
    working.start()
    working.join(60)
    assert [len(answer.damaged) for answer in answers] == [0]
