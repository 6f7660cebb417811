"""A complete, versioned, always-current copy of the Discogs database as sorted JSON in Git."""

import importlib.util
import os
import sys
from pathlib import Path

__version__ = "1.0.0"

CHECKOUT = Path(__file__).resolve().parents[2]


def _use_the_environment_of_the_checkout() -> None:
    """Let `python3 bin/worker.py` work with any Python once `bin/quickstart` has made `.venv`."""
    is_installed = importlib.util.find_spec("sqlite_utils") is not None
    # Outside of an environment it may be there alone, for another program.
    if is_installed and sys.prefix != sys.base_prefix:
        return
    python = CHECKOUT / ".venv" / "bin" / "python"
    script = Path(sys.argv[0]).resolve()
    if script.parent != CHECKOUT / "bin":
        return
    if python.exists() and Path(sys.executable) != python:
        os.execv(python, [str(python), str(script), *sys.argv[1:]])
    if not is_installed:
        sys.exit(
            f"{script.name}: its packages are not installed here; run bin/quickstart, "
            "or: python3 -m pip install '.[embedded]'"
        )


_use_the_environment_of_the_checkout()
