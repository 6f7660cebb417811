"""A store made with plain Git commands, in either layout, for tests of those who read it."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from discogs_crawler.records import parse_record_path, record_path

Record = tuple[str, int]
Changes = Mapping[Record, bytes | None]

_WHO = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "test"), ("EMAIL", "test@localhost"), ("DATE", "1700000000 +0000"))
}


def git(folder: Path, *arguments: str, given: bytes = b"") -> str:
    """What Git prints there; a failure is the test's."""
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        input=given,
        stdout=subprocess.PIPE,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **_WHO},
    )
    return done.stdout.decode().strip()


def record(number: int, text: str = "") -> bytes:
    """A stored record: indented JSON with keys in order, and a string that looks like JSON."""
    value = {
        "id": number,
        "notes": f'a\n  b {{"x": 1,  \\n}} é{text}',
        "tracklist": [{"title": "  x  "}],
    }
    return json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n"


class SingleStore:
    """One bare repository."""

    def __init__(self, folder: Path, branch: str = "main") -> None:
        self.folder = folder
        self.branch = branch
        _init(folder, branch)

    def commit(
        self, changes: Changes, *, technical: bool = False, branch: str = "", readme: str = ""
    ) -> str:
        """Commit these records (None: remove) to the branch; the new tip."""
        files = {record_path(*key): data for key, data in changes.items()}
        if readme:
            files["README.md"] = readme.encode()
        return _commit(self.folder, branch or self.branch, files, technical)

    def merge(self, branch: str) -> str:
        """Merge the branch into ours, as a commit with two parents."""
        tree = git(self.folder, "merge-tree", "--write-tree", self.branch, branch)
        parents = ["-p", self.branch, "-p", branch]
        commit = git(self.folder, "commit-tree", tree, *parents, "-m", f"merge {branch}")
        git(self.folder, "update-ref", f"refs/heads/{self.branch}", commit)
        return commit

    def tip(self) -> str:
        return git(self.folder, "rev-parse", self.branch)

    def records(self) -> dict[Record, bytes]:
        """What the tip holds, read with other commands than the export uses."""
        return _records(self.folder, self.branch, "")


class SubmoduleStore:
    """A superproject that pins a repository for each kind and million."""

    branch = "main"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._modules: dict[str, Path] = {}
        _init(folder, self.branch)

    def commit(self, changes: Changes, *, technical: bool = False, readme: str = "") -> str:
        by_module: dict[str, dict[str, bytes | None]] = {}
        for key, data in changes.items():
            kind, million, rest = record_path(*key).split("/", 2)
            by_module.setdefault(f"{kind}/{million}", {})[rest] = data
        lines = []
        for path, files in by_module.items():
            module = self.folder.parent / f"{path}.git"
            if path not in self._modules:
                _init(module, self.branch)
                self._modules[path] = module
            pin = _commit(module, self.branch, files, technical)
            lines.append(b"M 160000 %b %b\n" % (pin.encode(), path.encode()))
        modules = "".join(
            f'[submodule "{path}"]\n\tpath = {path}\n\turl = ../{path}.git\n'
            for path in sorted(self._modules)
        )
        files = {".gitmodules": modules.encode()} | (
            {"README.md": readme.encode()} if readme else {}
        )
        return _commit(self.folder, self.branch, files, technical, b"".join(lines))

    def tip(self) -> str:
        return git(self.folder, "rev-parse", self.branch)

    def records(self) -> dict[Record, bytes]:
        found: dict[Record, bytes] = {}
        for path, module in self._modules.items():
            found |= _records(module, self.branch, path + "/")
        return found


def _init(folder: Path, branch: str) -> None:
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--bare", f"--initial-branch={branch}")
    git(folder, "config", "uploadpack.allowFilter", "true")
    git(folder, "config", "gc.auto", "0")


def _commit(
    folder: Path,
    branch: str,
    files: Mapping[str, bytes | None],
    technical: bool,
    more: bytes = b"",
) -> str:
    message = b"a change" + (b"\n\nTechnical: reclean\n" if technical else b"")
    stream = [b"commit refs/heads/%b\n" % branch.encode()]
    stream.append(b"committer test <test@localhost> 1700000000 +0000\n")
    stream.append(b"data %d\n%b\n" % (len(message), message))
    start = f"refs/heads/{branch}"
    if (
        subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "-q", "--verify", start], capture_output=True
        ).returncode
        == 0
    ):
        stream.append(b"from refs/heads/%b^0\n" % branch.encode())
    for path, data in files.items():
        if data is None:
            stream.append(b"D %b\n" % path.encode())
        else:
            stream.append(b"M 100644 inline %b\ndata %d\n%b\n" % (path.encode(), len(data), data))
    git(folder, "fast-import", "--quiet", given=b"".join([*stream, more]))
    return git(folder, "rev-parse", branch)


def _records(folder: Path, branch: str, prefix: str) -> dict[Record, bytes]:
    found = {}
    for path in git(folder, "ls-tree", "-r", "--name-only", branch).splitlines():
        key = parse_record_path(prefix + path)
        if key is not None:
            found[key] = git(folder, "show", f"{branch}:{path}").encode() + b"\n"
    return found
