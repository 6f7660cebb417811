"""How fast is a dump split, next to what the machine can do at all and to what one would write?

    python -m tests.bench.split [--mb N] [--rounds N]

Makes two dumps of N MB of XML in today's format, a month apart: 2 % of the records changed. Splits
the first without a hash cache and the second with it, by the script as a user runs it, next to

- the limit: the fastest gzip decompressor here piped into the fastest SHA-1;
- ElementTree and lxml as one would use them, in one process, on the first megabytes.

The programs take turns, so that other work on the machine hits all of them; medians.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple
from xml.etree import ElementTree

import psutil
from isal import igzip
from lxml import etree
from tabulate import tabulate

from tests.discogs import dump
from tests.discogs.world import invented

ROOT = Path(__file__).resolve().parents[2]

# Records that are invented; the dump repeats them under new ids, too far apart for deflate's window
# of 32 kB to notice.
INVENTED = 4_000

CHANGED_SHARE = 0.02

# The whole dump of releases of 2026: bytes of XML.
REAL_DUMP_B = 65 * 2**30

# MB of XML for those programs that would take hours for more.
SLICE_MB = {"ElementTree": 20, "lxml": 60}


class Measured(NamedTuple):
    seconds: float
    main_mb: float = 0
    all_mb: float = 0


def make_dump(target: Path, megabytes: int, month: int) -> tuple[int, int]:
    """Write a dump as gzip -6 does; its bytes of XML and its records."""
    originals = [
        re.sub(rb'^<release id="\d+"', b"", text.encode(), count=1)
        for text in dump.records(invented(INVENTED), "releases")
    ]
    chance = random.Random("changes")
    size = records = 0
    squeeze = zlib.compressobj(6, zlib.DEFLATED, 31)
    with target.open("wb") as file:

        def write(text: bytes) -> None:
            nonlocal size
            size += len(text)
            file.write(squeeze.compress(text))

        write(b"<releases>\n")
        while size < megabytes * 1_000_000:
            records += 1
            text = originals[(records * 7) % INVENTED]
            if chance.random() < CHANGED_SHARE and month > 1:
                text = text.replace(b"</title>", b" (changed)</title>", 1)
            write(b'<release id="%d"%b' % (2 * records, text))
        write(b"</releases>\n")
        file.write(squeeze.flush())
    return size, records


def decompressors() -> Iterator[tuple[str, list[str]]]:
    """Those that are installed."""
    yield "python -m isal.igzip", [sys.executable, "-m", "isal.igzip", "-dc"]
    for name in ("igzip", "rapidgzip", "pigz", "gzip", "libdeflate-gzip"):
        if shutil.which(name):
            yield name, [name, "-dc"]


def hasher() -> list[str]:
    return ["openssl", "sha1"] if shutil.which("openssl") else ["sha1sum"]


def pipe(decompressor: list[str], path: Path) -> float:
    """Seconds for the decompressor piped into SHA-1."""
    started = time.perf_counter()
    with subprocess.Popen([*decompressor, str(path)], stdout=subprocess.PIPE) as inflating:
        subprocess.run(hasher(), stdin=inflating.stdout, stdout=subprocess.DEVNULL, check=True)
    if inflating.returncode:
        raise SystemExit(f"{decompressor} failed")
    return time.perf_counter() - started


def split(path: Path, folder: Path, state: Path) -> Measured:
    """The script, with a copy of the state folder that nobody else has."""
    own = folder / "state"
    shutil.rmtree(own, ignore_errors=True)
    if state.exists():
        shutil.copytree(state, own)
    script = ROOT / "bin" / "discogs_xml_split.py"
    command = [sys.executable, str(script), "-d", str(path), "-r", str(folder / "result")]
    environment = os.environ | {"STATE_DIR": str(own), "ENV_FILE": os.devnull}
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment) as process:
        watcher = Watcher(process.pid)
        watcher.start()
        process.wait()
        seconds = time.perf_counter() - started
        watcher.join()
    if process.returncode:
        raise SystemExit(f"the split exited {process.returncode}")
    return Measured(seconds, watcher.main_mb, watcher.all_mb)


class Watcher(threading.Thread):
    """Looks at the memory of a process and its children, 20 times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self.main_mb = self.all_mb = 0.0

    def run(self) -> None:
        while True:
            try:
                main = self._process.memory_info().rss / 1e6
                children = self._process.children(recursive=True)
                total = main + sum(child.memory_info().rss for child in children) / 1e6
            except psutil.Error:
                if not self._process.is_running():
                    return
                continue
            if not main:
                return
            self.main_mb, self.all_mb = max(self.main_mb, main), max(self.all_mb, total)
            time.sleep(0.05)


def element_tree(path: Path) -> None:
    """What the tool that this one replaces does."""
    with igzip.open(path) as file:
        for _, element in ElementTree.iterparse(file):
            if element.tag == "release":
                hashlib.sha1(ElementTree.tostring(element)).hexdigest()
                element.clear()


def lxml_c14n(path: Path) -> None:
    """One process, lxml, canonical XML."""
    with igzip.open(path) as file:
        for _, element in etree.iterparse(file, tag="release"):
            hashlib.sha1(etree.tostring(element, method="c14n", with_tail=False)).hexdigest()
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]


def timed(function: Callable[[Path], None], path: Path) -> float:
    started = time.perf_counter()
    function(path)
    return time.perf_counter() - started


def measure(megabytes: int, rounds: int, folder: Path) -> None:
    first, second = folder / "1" / "releases.xml.gz", folder / "2" / "releases.xml.gz"
    small = {name: folder / f"{name}.xml.gz" for name in SLICE_MB}
    for path in (first, second):
        path.parent.mkdir(exist_ok=True)
    size, records = make_dump(first, megabytes, 1)
    size, records = make_dump(second, megabytes, 2)
    small_sizes = {n: make_dump(small[n], min(mb, megabytes), 1)[0] for n, mb in SLICE_MB.items()}
    state, nothing = folder / "month-1", folder / "nothing"
    split(first, folder, nothing)
    shutil.copytree(folder / "state", state)
    # Whoever is fastest on the small dump is the limit.
    name, fastest = min(decompressors(), key=lambda entry: pipe(entry[1], small["lxml"]))
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, list[Measured]] = {"month": [], "first": []}
    for _ in range(rounds):
        seconds.setdefault("limit", []).append(size / pipe(fastest, second))
        peaks["month"].append(split(second, folder, state))
        seconds.setdefault("month", []).append(size / peaks["month"][-1].seconds)
        speed = small_sizes["ElementTree"] / timed(element_tree, small["ElementTree"])
        seconds.setdefault("ElementTree", []).append(speed)
        speed = small_sizes["lxml"] / timed(lxml_c14n, small["lxml"])
        seconds.setdefault("lxml", []).append(speed)
        peaks["first"].append(split(first, folder, nothing))
        seconds.setdefault("first", []).append(size / peaks["first"][-1].seconds)
    report(size, records, f"{name} -dc &#124; {' '.join(hasher())}", seconds, peaks)


def report(
    size: int,
    records: int,
    limit: str,
    speeds: dict[str, list[float]],
    peaks: dict[str, list[Measured]],
) -> None:
    labels = {
        "limit": f"the limit: `{limit}`",
        "month": "**a usual month** (2 % changed, with the cache)",
        "first": "**the first month** (no cache)",
        "lxml": "lxml `iterparse` + C14N + SHA-1, one process",
        "ElementTree": "ElementTree `iterparse` + `tostring` + SHA-1",
    }
    middle = {name: median(values) for name, values in speeds.items()}
    rows = []
    for name, label in labels.items():
        memory = (
            [max(m.main_mb for m in peaks[name]), max(m.all_mb for m in peaks[name])]
            if (name in peaks)
            else ["", ""]
        )
        rate = middle[name]
        rows.append(
            [
                label,
                f"{rate / 1e6:,.0f}",
                f"{rate * records / size:,.0f}",
                f"{rate / middle['limit']:.2f}",
                f"{rate / middle['lxml']:.1f}",
                f"{rate / middle['ElementTree']:.1f}",
                f"{REAL_DUMP_B / rate / 60:,.0f} min",
                *(f"{mb:.0f}" if mb != "" else "" for mb in memory),
            ]
        )
    print(
        f"{size / 1e6:,.0f} MB of XML, {records:,} releases, {size / records:,.0f} bytes each; "
        f"medians of {len(speeds['limit'])} rounds.\n"
    )
    headers = ["", "MB/s", "records/s", "of the limit", "x lxml", "x ElementTree", "65 GiB"]
    headers += ["peak MB", "with workers"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=200, help="MB of XML in a dump [200]")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured [3]")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-split-") as folder:
        measure(flags.mb, flags.rounds, Path(folder))


if __name__ == "__main__":
    main()
