"""What stops `bin/quickstart` is one line; tests/test_readme_runs.py takes the tour itself."""

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
