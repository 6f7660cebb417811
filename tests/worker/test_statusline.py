"""The line on the terminal: what matters first, and no wider than that."""

from collections import Counter

from discogs_crawler.broker.limiter import Quota
from discogs_crawler.worker import statusline

FULL = Quota(limit=60, ours=60, foreign=0, pause_s=0)


def line(quota: Quota, waiting: int, width: int = 80) -> str:
    counts = Counter(stored=1_234, gone=5)
    return statusline.line("releases", 59.6, counts, quota, waiting, 60, width)


def test_it_says_how_long_as_stats_does() -> None:
    assert line(FULL, 19_500_000, 120) == (
        "releases 60/min, quota 60/60; 19,500,000 waiting, 7 months left; 1,234 stored, 5 gone"
    )
    assert line(FULL._replace(pause_s=300), 0).startswith(
        "releases 60/min, pause 5 min; 0 waiting;"
    )


def test_what_does_not_fit_is_cut_at_the_end() -> None:
    cut = line(FULL, 19_500_000)
    assert len(cut) < 80
    assert cut.startswith("releases 60/min")
    assert cut.endswith("…")
