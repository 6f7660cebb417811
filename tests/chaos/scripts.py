"""Run a script of `bin/` in a forked child: as a process of its own, without the start-up time."""

import contextlib
import faulthandler
import functools
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from discogs_crawler import clock
from discogs_crawler.cli import command
from tests.conftest import ROOT

# A child that gets this signal writes to stderr where each of its threads is.
TELL = signal.SIGUSR1


@functools.cache
def load(script: str) -> ModuleType:
    """The script as a module; it is read once, by the parent."""
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), ROOT / "bin" / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(
    script: str,
    *args: object,
    environment: Mapping[str, str],
    output: Path,
    before: Callable[[], None] = lambda: None,
) -> int:
    """Fork a child that runs the script with just this environment; returns its process id.

    stdout goes to `output`, stderr to `output` with `.err` appended. `before` runs in the child.
    """
    module = load(script)
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        _become(environment, output)
        before()
        parser = module.arguments()
        parser.prog = script
        code = 1
        with contextlib.suppress(KeyboardInterrupt):  # as command.script does
            code = command.run(module.main, parser, [str(arg) for arg in args])
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 70
    except BaseException:
        code = 70
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):  # its disk may be full
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _become(environment: Mapping[str, str], output: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    clock.OFFSET_S = float(environment.get("CLOCK_OFFSET_S") or 0)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, path in (
        (0, Path(os.devnull)),
        (1, output),
        (2, output.with_name(output.name + ".err")),
    ):
        handle = os.open(path, os.O_RDONLY if number == 0 else flags, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    faulthandler.register(TELL, sys.stderr, all_threads=True)


def wait(pid: int) -> int:
    """The exit code of the child; minus the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
