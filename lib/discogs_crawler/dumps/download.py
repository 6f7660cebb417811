"""Download a dump into the dump folder; it gets its name only once it is verified.

The site sends no length, cuts connections so that the answer looks complete, may or may not honour
Range, answers with a page where it has no file, and shuts out clients that ask too often for an
hour. So requests are few, one at a time, and only the SHA-256 decides.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin

import urllib3
from urllib3.exceptions import HTTPError

from discogs_crawler import clock, paced_http
from discogs_crawler.cli import progress
from discogs_crawler.config import Settings
from discogs_crawler.dumps import site_index
from discogs_crawler.dumps.site_index import CHECKSUM, Listed
from discogs_crawler.errors import BadData, CrawlerError, TryLater, Unavailable, UsageError
from discogs_crawler.files import atomic_write, fsync_folder

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

log = logging.getLogger(__name__)

CHUNK_B = 1 << 18
GZIP_MAGIC = b"\x1f\x8b"

# An index is 2 kB, a CHECKSUM file 400 bytes.
PAGE_LIMIT_B = 1 << 20

CONNECT_S = 10
SILENCE_S = 60

# Bytes that must arrive in each of these times, and the time for a whole page: over a slower line
# the 11 GB would take a year.
PATIENCE_S = 300
LEAST_B = 100_000

# How much larger a file may be than the index says, which rounds, in units of 1000 or of 1024; and
# how large if the index does not say: the largest has 11 GB.
SIZE_FACTOR = 1.25
SIZE_LIMIT_B = 10**11

REDIRECTS = 3

# Waits before another attempt. A cut connection usually works again at once, and a server that
# ignores Range sends all 11 GB again, so there are not many.
RETRY_WAITS_S = (5, 60)

# A dump that is still missing this long after its date will not come: one came a month late.
LATE_S = 45 * clock.DAY_S

# Until when the site asked us to wait, in the dump folder.
_PAUSE = ".not-before"

# The longest pause that it can ask for; a longer one was written while the clock was wrong.
LONGEST_PAUSE_S = 999_999


class _Cut(Exception):
    """The connection ended, or the server failed, in a way that a new attempt may cure."""


def fetch(settings: Settings, kinds: list[str], date: int | None) -> list[Path]:
    """Download the newest complete dump of each kind, or that of `date` (YYYYMMDD).

    Returns their paths, in the order of `kinds`; for those already here only the index is read.
    TryLater if there is none yet or the site asked us to wait, UsageError if there is none of
    that date, Unavailable if the site does not answer, BadData if what it has does not match its
    checksum.
    """
    folder = settings.dump_dir
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    here = [_here(folder, kind, date) for kind in kinds]
    if date is not None and all(here):
        return [path for path in here if path]
    site = _Site(settings)
    listed = _listed(site, kinds, date)
    paths = []
    for kind, path in zip(kinds, here, strict=True):
        file = _newest(listed, kind, date)
        if file is not None and (path is None or path.name < file.name):
            path = _download(site, file, folder / file.name)
        if path is None:
            raise _absence(site.url, listed, kind, date)
        paths.append(path)
    return paths


def remove_old(folder: Path, kind: str, keep: int, spared: list[Path]) -> list[Path]:
    """Remove all dumps of the kind but the newest and `spared`, and what is named after them."""
    dumps = sorted(folder.glob(f"discogs_[0-9]*_{kind}.xml.gz"), reverse=True)
    kept = {path.name for path in (*dumps[:keep], *spared)}
    newest = dumps[0].name if dumps else ""
    removed = []
    pattern = f"discogs_[0-9]*_{kind}.xml.gz*"
    for path in sorted([*folder.glob(pattern), *folder.glob(f".{pattern}")]):
        name = path.name.lstrip(".").partition(".xml.gz")[0] + ".xml.gz"
        if name not in kept and name < newest and not path.is_dir():
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _here(folder: Path, kind: str, date: int | None) -> Path | None:
    """The newest dump of the kind that was downloaded before, or that of the date."""
    return max(folder.glob(f"discogs_{date or '[0-9]*'}_{kind}.xml.gz"), default=None)


def _listed(site: "_Site", kinds: list[str], date: int | None) -> list[Listed]:
    """The site's files, from as few pages of its index as possible."""
    this_year = datetime.fromtimestamp(clock.now(), UTC).year
    listed: list[Listed] = []
    for year in [date // 10_000] if date else [this_year, this_year - 1]:
        listed += site.index(year)
        if all(_newest(listed, kind, date) for kind in kinds):
            break
    return listed


def _newest(listed: list[Listed], kind: str, date: int | None) -> Listed | None:
    """The dump of the kind in the newest complete month, or of the date.

    Not one with a date in the future, which would stay the newest for ever.
    """
    tomorrow = int(f"{datetime.fromtimestamp(clock.now() + clock.DAY_S, UTC):%Y%m%d}")
    dates = [
        d for d in site_index.dates_of(listed, kind) if d == date or (not date and d <= tomorrow)
    ]
    return next((f for f in listed if dates and (f.date, f.kind) == (dates[0], kind)), None)


def _absence(url: str, listed: list[Listed], kind: str, date: int | None) -> CrawlerError:
    """The error that says whether a dump that the site does not have may still come."""
    if date is None:
        return TryLater(f"a complete dump of {kind} is not published yet at {url}")
    day = datetime.strptime(str(date), "%Y%m%d").replace(tzinfo=UTC)
    if clock.now() < day.timestamp() + LATE_S:
        return TryLater(f"the dump of {kind} of {date} is not published yet at {url}")
    others = ", ".join(map(str, sorted(site_index.dates_of(listed, kind)))) or "none"
    return UsageError(f"{url} has no dump of {kind} of {date}; of that year it has {others}")


def _download(site: "_Site", file: Listed, target: Path) -> Path:
    """Fetch what is missing of the file, in a few attempts, until its SHA-256 is right."""
    expected = site.checksums(file.date).get(file.name)
    if expected is None:
        raise TryLater(f"{file.name}: the CHECKSUM file of that day does not name it yet")
    partial = target.with_name(f".{target.name}.{expected.hex()[:8]}.part")
    trouble: CrawlerError
    for wait_s in (*RETRY_WAITS_S, None):
        try:
            if _attempt(site, file, partial, expected):
                return _accept(partial, target, file)
            trouble = BadData(f"{file.name}: SHA-256 does not match; the next run starts afresh")
        except _Cut as error:
            trouble = Unavailable(f"{file.name}: {error}; the next run goes on from here")
        except OSError as error:
            raise Unavailable(f"{partial}: {error.strerror or error}") from error
        if wait_s is not None:
            log.info("%s; again in %d s", trouble, wait_s)
            time.sleep(wait_s)
    if isinstance(trouble, BadData):
        partial.unlink(missing_ok=True)
    raise trouble


def _attempt(site: "_Site", listed: Listed, partial: Path, expected: bytes) -> bool:
    """Ask once for the rest of the file; True if its SHA-256 is right now."""
    with partial.open("ab+") as file:
        digest = hashlib.sha256()
        file.seek(0)
        while block := file.read(CHUNK_B):
            digest.update(block)
        size = file.tell()
        if digest.digest() == expected:
            return True
        with (
            site.file(listed, size) as response,
            progress.bar(listed.name, listed.size, "MB/s", 1e6) as advance,
        ):
            if response.status == 206:
                advance(size)
            else:
                file.truncate(0)
                digest = hashlib.sha256()
            limit = SIZE_FACTOR * listed.size or SIZE_LIMIT_B
            if response.status != 416:
                for block in _blocks(response):
                    if file.tell() > limit:
                        file.truncate(0)
                        raise Unavailable("the dump site sends far more than its index says")
                    file.write(block)
                    digest.update(block)
                    advance(len(block))
        file.flush()
        os.fsync(file.fileno())
    return digest.digest() == expected


def _blocks(response: "BaseHTTPResponse") -> Iterator[bytes]:
    """The body, piece by piece; Unavailable at once if it is a page and not a dump."""
    unchecked = response.status == 200
    try:
        for block in response.stream(CHUNK_B, decode_content=False):
            if unchecked and not block.startswith(GZIP_MAGIC):
                raise Unavailable("the dump site answered with something that is not a dump")
            unchecked = False
            yield block
    except HTTPError as error:
        raise _Cut(f"the connection ended early ({type(error).__name__})") from error


def _accept(partial: Path, target: Path, file: Listed) -> Path:
    """Give the verified file its name, and the time of its upload."""
    partial.chmod(0o644)
    if file.modified:
        modified = min(file.modified, clock.now())
        os.utime(partial, (modified, modified))
    partial.rename(target)
    for other in target.parent.glob(f".{target.name}.*.part"):
        other.unlink()  # of a file that has been replaced since
    fsync_folder(target.parent)
    log.info("%s: downloaded and verified", target)
    return target


class _Site:
    """The dump site: one connection, with our user agent."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.dump_site
        self._pause = settings.dump_dir / _PAUSE
        self._pool = urllib3.PoolManager(
            maxsize=1,
            headers={
                "User-Agent": settings.discogs_user_agent,
                "Accept-Encoding": "identity",
            },
            timeout=urllib3.Timeout(connect=CONNECT_S, read=SILENCE_S),
            retries=False,
        )
        self._pool.pool_classes_by_scheme = paced_http.pools(PATIENCE_S, LEAST_B, SIZE_LIMIT_B)

    def index(self, year: int) -> list[Listed]:
        """What the site lists for a year."""
        page = self._page(f"prefix={quote(f'data/{year}/', safe='')}", "the index")
        listed = site_index.parse_index(page)
        if not listed and "<pre" not in page.lower():
            raise Unavailable(f"{self.url} answered with a page that is not its index")
        return listed

    def checksums(self, date: int) -> dict[str, bytes]:
        """The checksums of the dumps of a day."""
        file = f"data/{date // 10_000}/discogs_{date}_{CHECKSUM}.txt"
        name = f"discogs_{date}_{CHECKSUM}.txt"
        text = self._page(f"download={quote(file, safe='')}", name)
        if text.lstrip().startswith("<"):
            raise Unavailable(f"{self.url} answered with a page where {name} should be")
        return site_index.parse_checksums(text)

    def file(self, listed: Listed, start: int) -> "BaseHTTPResponse":
        """The response with the file from byte `start` on (206), or all of it (200), or 416."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        response = self._get(f"download={quote(listed.place, safe='')}", headers)
        wrong_part = response.status == 206 and not response.headers.get(
            "Content-Range", ""
        ).startswith(f"bytes {start}-")
        if response.status not in (200, 206, 416) or wrong_part:
            response.close()
            raise _Cut(f"HTTP {response.status}")
        return response

    def _page(self, query: str, what: str) -> str:
        try:
            response = self._get(query, {})
            try:
                body = response.read(PAGE_LIMIT_B)
            finally:
                response.close()
        except (HTTPError, _Cut) as error:
            raise Unavailable(f"{self.url}: {what}: {_in_one_line(error)}") from error
        if response.status != 200:
            raise Unavailable(f"{self.url}: {what}: HTTP {response.status}")
        return body.decode("utf-8", "replace")

    def _get(self, query: str, headers: dict[str, str]) -> "BaseHTTPResponse":
        self._check_pause()
        mark = "&" if "?" in self.url else "?"
        try:
            response = self._follow(f"{self.url}{mark}{query}", {**self._pool.headers, **headers})
        except (HTTPError, ValueError) as error:
            raise _Cut(_in_one_line(error)) from error
        if response.status == 429 or (response.status == 503 and "Retry-After" in response.headers):
            response.close()
            self._leave_alone(response.headers.get("Retry-After", ""))
        if response.status == 403:
            response.close()
            raise Unavailable(f"{self.url} refuses this address (HTTP 403)")
        return response

    def _follow(self, url: str, headers: dict[str, str]) -> "BaseHTTPResponse":
        """Follow redirects, but not from TLS to an address without it, where anybody can answer.

        urllib3 would read the body of a redirect into memory, whatever its size.
        """
        for _ in range(REDIRECTS + 1):
            response = self._pool.request(
                "GET", url, headers=headers, preload_content=False, redirect=False
            )
            place = response.get_redirect_location()
            if not place:
                return response
            response.close()
            before, url = url, urljoin(url, place)
            if before.startswith("https:") and not url.startswith("https:"):
                raise Unavailable(
                    f"{self.url} redirects us to an address without TLS, {url[:80]!r}"
                )
        raise Unavailable(f"{self.url} redirects us too often, the last time to {url[:80]!r}")

    def _check_pause(self) -> None:
        """TryLater if the site asked us to wait and that time is not over."""
        try:
            until = int(self._pause.read_text())
        except (OSError, ValueError):
            return
        if 0 < until - clock.now() < LONGEST_PAUSE_S + clock.SKEW_S:
            raise TryLater(f"{self.url} asked us to wait until {clock.iso(until)}")
        self._pause.unlink(missing_ok=True)

    def _leave_alone(self, retry_after: str) -> None:
        """Remember for the next runs until when the site asked us to wait; by default an hour."""
        seconds = int(retry_after) if retry_after.isdecimal() and len(retry_after) < 7 else 3_600
        with atomic_write(self._pause) as file:
            file.write(b"%d\n" % (clock.now() + seconds))
        self._check_pause()
        raise TryLater(f"{self.url} is too busy; run this again")


def _in_one_line(error: Exception) -> str:
    """What is wrong with the connection, without the exceptions around it."""
    reason = getattr(error, "reason", None) or error
    return str(reason).rpartition(": ")[2].strip("()'\"") or type(reason).__name__
