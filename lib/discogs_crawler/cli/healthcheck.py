"""Tell a dead man's switch that a script starts, is done, or failed; silence is the alarm.

HEALTHCHECK_URL is pinged as healthchecks.io and similar services expect it: `URL/start`, `URL`,
`URL/fail`. `{script}` in it becomes the script's name (`seed-queue`), so that each has a check of
its own. A ping that fails is a warning: the crawler does not depend on its monitoring. A script
that is done while a disk is nearly full pings `URL/fail`, too, before anything fails.

A worker that runs without end pings only when it has failed: after a start or a success such a
service expects the next ping soon, and it would come after months. `worker.py --check` never pings.
"""

import logging
import sys
from collections.abc import Callable, Collection

from discogs_crawler.cli import disk_space
from discogs_crawler.config import Settings
from discogs_crawler.errors import EXIT_BUG, EXIT_DONE, EXIT_TRY_LATER, CrawlerError

log = logging.getLogger(__name__)

# A ping holds up the script it is about.
TIMEOUT_S = 10

START, DONE, FAIL = "/start", "", "/fail"
ALL = (START, DONE, FAIL)


def watch(settings: Settings, script: str, job: Callable[[], int], pings: Collection[str]) -> int:
    """Run `job`, reporting what `pings` has of its start and its end; returns its exit code.

    "Try later" is not reported as an end: the run that is under way reports its own, and if there
    is none, silence is right. On a terminal nothing is reported, because somebody is watching.
    """
    if settings.healthcheck_url is None or sys.stderr.isatty():
        return job()

    def tell(ping: str) -> None:
        if ping in pings:
            _ping(url + ping)

    url = settings.healthcheck_url.reveal()
    url = url.replace("{script}", script.removesuffix(".py").replace("_", "-")).rstrip("/")
    code = EXIT_BUG
    tell(START)
    try:
        code = job()
        return code
    except CrawlerError as error:
        code = error.exit_code
        raise
    finally:
        if code != EXIT_TRY_LATER:
            short = any(disk.nearly_full for disk in disk_space.disks(settings))
            tell(DONE if code == EXIT_DONE and not short else FAIL)


def _ping(url: str) -> None:
    # Here, because it takes longer to import than many a script takes to run.
    import urllib3
    from urllib3.exceptions import HTTPError

    try:
        # Retries would be logged by urllib3, with the URL.
        answer = urllib3.request(
            "GET", url, timeout=TIMEOUT_S, retries=False, preload_content=False
        )
        # What it says is never read, because it may never end.
        answer.close()
    except (HTTPError, ValueError) as error:
        log.warning("HEALTHCHECK_URL could not be pinged: %s", type(error).__name__)
        return
    if answer.status >= 300:
        log.warning("HEALTHCHECK_URL could not be pinged: HTTP %d", answer.status)
