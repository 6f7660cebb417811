"""What stops `bin/quickstart` is one line; tests/test_readme_runs.py takes the tour itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.discogs import tour


def test_an_argument_that_is_not_understood_installs_nothing() -> None:
    command = [sys.executable, ROOT / "bin" / "quickstart", "--stpo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr == "quickstart: not understood: --stpo (see quickstart --help)\n"


@pytest.mark.parametrize("lost", ["the program", "the version"])
def test_an_environment_whose_python_has_gone_is_made_anew(tmp_path: Path, lost: str) -> None:
    """As far as that goes without a network."""
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "bin" / "quickstart", tmp_path / "bin")
    environment = tmp_path / ".venv"
    python = environment / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (environment / "bin" / "pip").touch()
    with (environment / "installed-embedded").open("w") as stamp:
        for name in ("setup.cfg", "pyproject.toml"):
            stamp.write((ROOT / name).read_text())
            shutil.copy(ROOT / name, tmp_path)
    if lost == "the program":
        python.unlink()
        python.symlink_to("python3.0")
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    bare |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    command = [sys.executable, tmp_path / "bin" / "quickstart"]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 69
    assert done.stderr.endswith("\nquickstart: pip could not install the project; see above\n")
    subprocess.run([python, "-c", "import pip"], check=True)


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "var").touch()
    monkeypatch.setattr(tour, "STATE", tmp_path / "var" / "quickstart")
    monkeypatch.setattr(sys, "argv", ["quickstart"])
    with pytest.raises(SystemExit) as caught:
        tour.main()
    assert caught.value.code == 78
    said = capsys.readouterr().err
    assert said == f"quickstart: {tmp_path}/var/quickstart/dumps: Not a directory\n"
