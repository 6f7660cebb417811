"""Who may import whom in the lib, and that every name has one home."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

LIB = ROOT / "lib" / "discogs_crawler"
README = (LIB / "README.md").read_text()

# What a package may import besides itself and the modules at the root; what is not here, nothing.
MAY_IMPORT = {
    "": set(),
    "cli": set(),
    "dumps": {"cli"},
    "ledger": set(),
    "broker": set(),
    "api": {"cli"},
    "store": {"cli"},
    "seeding": {"cli", "dumps", "ledger", "broker"},
    "importing": {"cli", "dumps", "ledger", "store", "api", "seeding.dump_guard"},
    "worker": {"cli", "api", "broker", "ledger", "store", "seeding.exchange"},
    "maintenance": {
        "cli",
        "store",
        "ledger",
        "broker",
        "api",
        "seeding.exchange",
        "seeding.on_demand",
    },
    "export": {"cli", "store", "ledger", "api.exact_json"},
    "stats": {"cli", "ledger", "broker", "store"},
}

# A script may import `cli`, the root and its own package, and what it joins with that.
MAY_WIRE = {
    "download_dump.py": {"dumps"},
    "discogs_xml_split.py": {"dumps", "ledger"},
    "seed_queue.py": {"seeding", "store"},
    "import_dump.py": {"importing"},
    "worker.py": {"worker"},
    "export_changes.py": {"export", "ledger", "store"},
    "maintain_store.py": {"maintenance"},
    "stats.py": {"stats"},
}

MODULES = sorted(LIB.rglob("*.py"))
SCRIPTS = sorted((ROOT / "bin").glob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path) -> Iterator[str]:
    """The modules of the lib that a file imports: `store.git`, `config`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("discogs_crawler."):
                yield name.removeprefix("discogs_crawler.")


def forbidden(path: Path, own: str, allowed: set[str]) -> list[str]:
    found = []
    for name in imported(path):
        package, _, rest = name.partition(".")
        module = f"{package}.{rest.partition('.')[0]}"
        if package in MAY_IMPORT and package != own and not {package, module} & allowed:
            found.append(name)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(LIB)))
def test_a_module_imports_only_what_its_package_may(path: Path) -> None:
    parts = path.relative_to(LIB).parts
    package = parts[0] if len(parts) > 1 and parts[0] != "data" else ""
    wrong = forbidden(path, package, MAY_IMPORT[package])
    assert not wrong, f"{package or 'the root'} may import {MAY_IMPORT[package]}, not {wrong}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_imports_only_what_it_wires(path: Path) -> None:
    wrong = forbidden(path, "", MAY_WIRE[path.name] | {"cli"})
    assert not wrong, f"{path.name} may import {MAY_WIRE[path.name]} and cli, not {wrong}"


def test_no_package_imports_one_that_imports_it() -> None:
    reached: dict[str, set[str]] = {}
    for package, allowed in MAY_IMPORT.items():
        # In the order of the table each may only import what stands above it.
        assert {name.partition(".")[0] for name in allowed} <= reached.keys(), package
        reached[package] = allowed


def test_a_class_name_stands_once_in_the_lib() -> None:
    names = Counter(
        node.name
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("package", [name for name in MAY_IMPORT if name])
def test_a_package_says_in_one_sentence_what_it_is(package: str) -> None:
    module = tree(LIB / package / "__init__.py")
    assert len(module.body) == 1
    said = ast.get_docstring(module)
    assert said is not None
    assert "\n" not in said
    assert said.endswith(".")


def test_the_map_of_the_lib_has_the_same_rules() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.splitlines()
        if line.startswith("| `")
    ]
    said = {row[0].strip("`/"): row[2] for row in rows if row[0].endswith("/`")}
    assert said == {
        package: ", ".join(sorted(allowed)) or "-"
        for package, allowed in MAY_IMPORT.items()
        if package
    }
    for row in rows:
        if row[0].endswith("/`"):
            for name in row[3].split(", "):
                assert (LIB / row[0].strip("`/") / name).with_suffix(".py").exists(), name


def test_the_map_is_short() -> None:
    assert len(README.splitlines()) <= 90
