"""Run the stand-in Discogs until it is killed: an API and a dump site, both on loopback.

Prints the URL of the API as the first line, that of the dump site as the second. The world is that
of `python -m tests.discogs.dump` with the same --records and --month; the dump site has its dumps,
dated the first of this month. control.py says how to change the world while it is shown.

Example:
    python -m tests.discogs --records 200 --window 2 --limit 60
"""

import argparse
import calendar
import signal
import threading
import time
from pathlib import Path

from tests.discogs import dump
from tests.discogs.api import Api
from tests.discogs.faults import Faults
from tests.discogs.quota import Quota
from tests.discogs.site import Site
from tests.discogs.world import KINDS, World, invented


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tests.discogs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="of the API; 0 is any free one [0]")
    parser.add_argument("--records", type=int, default=200, help="of each kind [200]")
    parser.add_argument("--kind", action="append", choices=KINDS, help="[releases]; repeatable")
    parser.add_argument("--month", type=int, default=1, help="months that went by [1]")
    parser.add_argument("--limit", type=int, default=60, help="with a token, a window [60]")
    parser.add_argument("--limit-without", type=int, default=25, help="without a token [25]")
    parser.add_argument("--window", type=float, default=60, metavar="SECONDS", help="[60]")
    parser.add_argument("--latency", type=float, default=0, metavar="SECONDS", help="[0]")
    parser.add_argument("--jitter", type=float, default=0, metavar="SECONDS", help="[0]")
    parser.add_argument("--seed", type=int, default=0, help="of the faults [0]")
    parser.add_argument(
        "--fault", action="append", default=[], metavar="NAME=SHARE", help="e.g. 500=0.05"
    )
    parser.add_argument("--captures", type=Path, help="a folder of real answers, KIND/ID.json")
    return parser


def publish(site: Site, world: World, day: float) -> None:
    """Put the world's dump of every kind that it has on the site, dated the first of the month."""
    date = int(time.strftime("%Y%m01", time.gmtime(day)))
    dumps = {kind: dump.compressed(world, kind) for kind in KINDS if world.alive[kind]}
    first = calendar.timegm(time.strptime(str(date), "%Y%m%d"))
    site.publish(date, dumps, modified=min(time.time(), first + 19 * 3_600))


def main() -> None:
    flags = arguments().parse_args()
    faults = Faults(flags.seed)
    faults.set_probabilities({n: float(p) for n, p in (f.split("=") for f in flags.fault)})
    world = invented(flags.records, flags.kind or ["releases"], flags.month)
    api = Api(
        world,
        Quota(flags.limit, flags.limit_without, flags.window),
        faults,
        latency_s=flags.latency,
        jitter_s=flags.jitter,
        captures=flags.captures,
        host=flags.host,
        port=flags.port,
    )
    with api, Site(flags.host) as site:
        publish(site, world, time.time())
        print(api.url, site.url, sep="\n", flush=True)
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()


if __name__ == "__main__":
    main()
