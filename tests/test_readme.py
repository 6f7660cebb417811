"""The texts and --help cannot lie: every name in them is one the code knows, and the reverse."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from discogs_crawler import errors
from discogs_crawler.api import cleaning
from discogs_crawler.config import SETTINGS
from discogs_crawler.export.formats import FORMATS
from tests import picture
from tests.bench.__main__ import BENCHES
from tests.conftest import ROOT
from tests.readme import LIB, README, TEXTS, section

SCRIPTS = sorted(path.name for path in (ROOT / "bin").glob("*.py"))
COMMON = {
    "--help",
    "--version",
    "--verbose",
    "--quiet",
    "--env-file",
    "--state-dir",
    "--log-format",
}


@functools.cache
def help_of(script: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bin" / script), "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "100", "ENV_FILE": "/dev/null"},
    )
    return done.stdout


def options_of(script: str) -> list[set[str]]:
    """The spellings of each option that the script takes, without those that all scripts take."""
    lines = re.findall(r"^  (-[^ ].*?)(?:  |$)", help_of(script), re.MULTILINE)
    spellings = [set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line)) for line in lines]
    return [names for names in spellings if not names & COMMON]


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z](?:[a-z-]*[a-z])?(?![\w-])", text))


def test_the_table_of_settings_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*) \| (.*) \|$", section("Settings"), re.MULTILINE)
    shown = {(name, default.strip("` "), text) for name, default, text in rows}
    assert shown == {
        (each.name, each.default, each.help + (" (secret)" if each.secret else ""))
        for each in SETTINGS
    }


def test_the_sample_of_settings_is_that_of_the_code() -> None:
    sample = (ROOT / ".env.example").read_text()
    rows = re.findall(r"^# (.+)\n#([A-Z_]+)=(.*)$", sample, re.MULTILINE)
    assert {(name, default, doc) for doc, name, default in rows} == {
        (setting.name, setting.default, setting.help) for setting in SETTINGS
    }
    assert len(re.findall(r"^[^#\n]", sample, re.MULTILINE)) == 0, "all of it is commented out"


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_has_a_flag_for_a_secret(script: str) -> None:
    secrets = {setting.flag for setting in SETTINGS if setting.secret}
    assert [names for names in options_of(script) if names & secrets] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_of_a_script_is_in_its_section(script: str) -> None:
    settings = {setting.flag for setting in SETTINGS}
    described = flags_in(section(script))
    missing = [o for o in options_of(script) if not o & described and not o & settings]
    assert missing == []


def test_every_option_in_the_section_of_a_script_is_one_of_some_script() -> None:
    offered = set().union(*(names for script in SCRIPTS for names in options_of(script)))
    for script in SCRIPTS:
        described = {flag for flag in flags_in(section(script)) if flag.startswith("--")}
        others = {"--name-only", "--no-renames"}  # of git diff
        assert described - offered - COMMON - others == set(), script


def test_the_fields_that_are_removed_are_those_of_the_code() -> None:
    [sentence] = re.findall(
        r"These fields are not stored (.*?)\.\s`REMOVE_FIELDS`", section("worker.py"), re.DOTALL
    )
    everywhere, *more = sentence.split("; of ")
    assert set(re.findall(r"`(.+?)`", everywhere)) == set(cleaning.VOLATILE)
    of_kind = {each.partition(" ")[0]: tuple(re.findall(r"`(.+?)`", each)) for each in more}
    assert of_kind == cleaning.VOLATILE_OF_KIND


def test_every_format_of_an_export_is_explained() -> None:
    script = "export_changes.py"
    named = set(re.findall(r"`(\w+)`", section(script)))
    explained = re.findall(
        r"^  ([a-z]+) {2,}\S", help_of(script).split("options:")[0], re.MULTILINE
    )
    assert explained == list(FORMATS)
    assert named.issuperset(FORMATS)


def test_the_variables_for_a_command_of_an_export_are_those_it_gets() -> None:
    sources = (ROOT / "bin" / "export_changes.py", ROOT / LIB / "export" / "run.py")
    given = set(re.findall(r'"(EXPORT_[A-Z]+)": ', "".join(path.read_text() for path in sources)))
    assert set(re.findall(r"EXPORT_[A-Z]+", help_of("export_changes.py"))) == given


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_help_of_a_script_has_an_example_and_its_exit_codes(script: str) -> None:
    text = help_of(script)
    assert re.search(r"^ *(Examples?:|dump=)|^  " + re.escape(script) + " ", text, re.MULTILINE)
    assert script in text.split("options:")[0]
    for code in re.findall(r"\b(?:6[459]|70|75|78)\b", text.split("options:")[0]):
        assert f"| {code} |" in section("Exit codes")


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_and_every_test_that_is_named_is_there(name: str) -> None:
    named = re.findall(r"`((?:bin|lib|tests)/[\w./-]+)(?:::(\w+))?`", TEXTS[name])
    assert [file for file, _ in named if not (ROOT / file).exists()] == []
    sources = {file: (ROOT / file).read_text() for file, test in named if test}
    assert [test for file, test in named if test and f"def {test}(" not in sources[file]] == []


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_to_a_file_and_a_heading(name: str) -> None:
    for target in re.findall(r"\]\(((?!https:)[^)]+)\)", TEXTS[name]):
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings]
            assert anchor in slugs, target


@pytest.mark.parametrize("name", TEXTS)
def test_every_module_to_run_is_there_and_knows_its_flags(name: str) -> None:
    for module, rest in re.findall(r"python -m (tests[\w.]*)([^`\n#]*)", TEXTS[name]):
        path = ROOT / module.replace(".NAME", "").replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        source = path.read_text()
        flags = set(re.findall(r"--[a-z][a-z-]*", rest)) - {"--help"}
        assert [flag for flag in flags if f'"{flag}"' not in source] == [], module


def test_every_benchmark_has_its_figures() -> None:
    text = TEXTS["tests/bench/README.md"]
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == list(BENCHES)
    for bench in BENCHES:
        described = section(bench, "tests/bench/README.md")
        assert described.strip().startswith(f"`python -m tests.bench.{bench} "), bench
        assert re.search(r"^\|[-:]+", described, re.MULTILINE), f"no table of {bench}"


def test_what_one_sees_when_something_goes_wrong_is_what_the_code_says() -> None:
    seen = re.findall(r"^\| ([^|]*) \|", section("What can go wrong"), re.MULTILINE)
    quoted = [words for cell in seen for words in re.findall(r'"([^"]+)"', cell)]
    assert len(quoted) > 5
    assert [words for words in quoted if not any(words in text for text in said())] == []


@functools.cache
def said() -> list[str]:
    """The texts in the code of the lib, without docstrings."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / LIB).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    constants = [node for node in nodes if isinstance(node, ast.Constant)]
    return [
        node.value for node in constants if isinstance(node.value, str) and node not in docstrings
    ]


def test_what_it_costs_was_measured() -> None:
    """Each figure of the README is one of the benchmarks', rounded."""
    numbers = re.compile(r"(?<![\w-])\d[\d,]*(?:\.\d+)?")
    measured = [float(n.replace(",", "")) for n in numbers.findall(TEXTS["tests/bench/README.md"])]
    for what, *cells in re.findall(
        r"^\| (.*) \| (.*\d.*) \| (.*) \| .*\|$", section("What it costs"), re.MULTILINE
    ):
        for number in numbers.findall(" ".join(cells)):
            places = len(number.partition(".")[2])
            value = float(number.replace(",", ""))
            assert any(round(each, places) == value for each in measured), (what, number)


def test_each_invariant_has_a_mechanism_and_a_test() -> None:
    rows = re.findall(r"^\| (P\d+) \| .+ \| .+ \| (.+) \|$", TEXTS["tests/README.md"], re.MULTILINE)
    assert [name for name, _ in rows] == [f"P{number}" for number in range(1, 11)]
    assert all("::test_" in tests for _, tests in rows)


def test_the_readme_can_be_read_to_the_end() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 450


def test_the_picture_is_that_of_the_report(tmp_path: Path) -> None:
    assert picture.draw(picture.invented_snapshot(tmp_path)) == picture.TARGET.read_bytes()
    assert str(picture.TARGET.relative_to(ROOT)) in TEXTS["README.md"]


def test_the_units_to_enable_are_those_there_are() -> None:
    units = ROOT / "lib" / "discogs_crawler" / "data" / "systemd"
    named = set(re.findall(r"discogs-[a-z]+\.(?:service|timer)", README))
    timers = {path.name for path in units.glob("*.timer")}
    assert named == timers | {"discogs-worker.service"}
    assert all((units / name.replace(".timer", ".service")).exists() for name in named)


def test_every_exit_code_of_the_code_is_in_the_table() -> None:
    codes = {str(value) for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert set(re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE)) == codes


def test_the_project_has_only_what_it_was_asked_to_have_at_the_top() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    tops = {Path(name).parts[0] for name in tracked}
    plain = {name for name in tops if not name.startswith(".")}
    assert plain == {
        *("bin", "lib", "tests", "crontab.example", "README.md"),
        *("setup.cfg", "pyproject.toml", "LICENSE"),
    }
