"""`worker.py --check`: what is configured, reachable, missing; one line each, no secrets."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from discogs_crawler.api import cleaning
from discogs_crawler.api.client import Client
from discogs_crawler.broker.connect import about, connect, limiter_of, queue_of, refuse_other_store
from discogs_crawler.broker.redis_errors import where
from discogs_crawler.config import Settings
from discogs_crawler.errors import BadData, ConfigurationError, CrawlerError, Unavailable
from discogs_crawler.ledger import database
from discogs_crawler.ledger.database import Ledger, NoLedgerYet
from discogs_crawler.store import git_process
from discogs_crawler.store.layouts import (
    look_at_remote,
    open_store,
    refuse_lost_ledger,
    refuse_to_begin_anew,
)
from discogs_crawler.worker import local_ledger


class Finding(NamedTuple):
    """What was looked at, what was found, and what is wrong with it if anything."""

    what: str
    text: str
    error: CrawlerError | None = None


def check(settings: Settings, kind: str) -> Iterator[Finding]:
    """Look at everything that a worker needs, one after the other; one request to the API."""
    looks: tuple[tuple[str, Callable[[Settings, str], str]], ...] = (
        ("settings", _settings),
        ("ledger", _ledger),
        ("store", _store),
        ("remote", _remote),
        ("Redis", _redis),
        ("API", _api),
    )
    for what, look in looks:
        try:
            if text := look(settings, kind):
                yield Finding(what, text)
        except CrawlerError as error:
            yield Finding(what, str(error), error)
            if what == "Redis":
                # Without it there is no permit for a request to the API.
                return


def _settings(settings: Settings, kind: str) -> str:
    source = settings.env_file or "no .env"
    rules = cleaning.rules_for(settings, kind).name
    return f"{source}, state in {settings.state_dir}, cleaning rules {rules}"


def _ledger(settings: Settings, kind: str) -> str:
    try:
        ledger = database.open(settings.database, read_only=True)
    except NoLedgerYet:  # though its file may have the places of consumers on a machine of workers
        return f"{settings.database} is not there yet: seed_queue.py makes it, here or elsewhere"
    with ledger as opened:
        dump = opened.last_accepted(kind)
        if dump is None:
            return f"{settings.database}, no dump accepted yet"
        return f"{settings.database}, {dump.file}; {_way(opened, kind)}"


def _way(opened: Ledger, kind: str) -> str:
    """Which of the three ways of running this is, as far as can be seen."""
    imported, backfill = opened.db.execute(
        "SELECT ifnull(sum(records * (state = 'imported')), 0), "
        "ifnull(sum(records * (reason = 'backfill')), 0) FROM counts WHERE kind = ?",
        (kind,),
    ).fetchone()
    if not imported:
        return "nothing imported from a dump, everything from the API"
    if backfill:
        return f"{imported:,} imported from the dump, everything wanted from the API"
    asked = opened.db.execute("SELECT 1 FROM outcomes WHERE kind = ? LIMIT 1", (kind,)).fetchone()
    return f"{imported:,} imported from the dump, " + (
        "what changes wanted from the API" if asked else "nothing from the API yet"
    )


def _store(settings: Settings, kind: str) -> str:
    version = subprocess.run(["git", "--version"], capture_output=True, text=True, check=False)
    git_process.check_version()
    try:
        store = open_store(settings, create=False)
    except ConfigurationError:
        if settings.store.exists() and any(settings.store.iterdir()):
            raise
        refuse_to_begin_anew(settings, local_ledger.stored(settings.database))
        _refuse_if_nothing_can_be_made(settings.store)
        return f"{settings.store}, will be made; {version.stdout.strip()}"
    refuse_lost_ledger(store, settings)
    with contextlib.suppress(BadData):  # of the ledger, which was told above
        local_ledger.refuse_older_copy(settings.database, store)
    tip = store.tip()
    return f"{settings.store}, {tip[:10] if tip else 'empty'}; {version.stdout.strip()}"


def _refuse_if_nothing_can_be_made(folder: Path) -> None:
    there = next(parent for parent in folder.parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigurationError(f"STORE {folder} cannot be made: {there} is not writable for us")


def _remote(settings: Settings, kind: str) -> str:
    """Ask STORE_REMOTE; "" if there is none."""
    if settings.store_remote is None:
        return ""
    address = settings.store_remote.reveal()
    try:
        look_at_remote(settings, address)
    except CrawlerError as error:
        raise type(error)(str(error).replace(address, "***")) from error
    return "STORE_REMOTE answers"


def _redis(settings: Settings, kind: str) -> str:
    client = connect(settings, wait=settings.redis_url is None)
    queue = queue_of(client, settings, kind)
    refuse_other_store(settings, queue)
    pending = sum(queue.depths().values())
    return (
        f"{where(client)}, {pending:,} {kind} pending, {len(queue.leased()):,} leased, "
        f"{len(queue.delayed()):,} delayed, {queue.unread():,} results unread; "
        f"{about(client)}"
    )


def _api(settings: Settings, kind: str) -> str:
    client = Client(settings)
    limiter = limiter_of(connect(settings), settings)
    permit = limiter.lend(settings.rate_window_s / 2)
    if permit is None:
        quota = limiter.status()
        return f"{settings.discogs_api}, not asked: {quota.ours} of {quota.limit} permits are lent"
    answer = client.greet()
    if not answer.arrived:
        limiter.lost(permit)
        raise Unavailable(f"{settings.discogs_api}: {answer.reason}")
    good = answer.outcome == "record"
    limiter.answered(permit, answer.limit, answer.remaining, "good" if good else "poor")
    if answer.outcome in ("refused", "forbidden"):
        raise ConfigurationError(f"{settings.discogs_api} refuses us: {answer.reason}")
    if not good:
        raise Unavailable(f"{settings.discogs_api}: {answer.reason}")
    token = "with a token" if settings.discogs_token else "without a token (DISCOGS_TOKEN)"
    return f"{settings.discogs_api}, {answer.limit or 'unknown'} requests a minute, {token}"
