"""Commands of compsearch in processes of their own, forked from one that has imported everything already.

A whole-process test takes seconds for imports that it does not test. What tests the start itself, or that something is
not imported, starts an interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["compsearch.cli", "processes"])


class Command:
    """``python -m compsearch`` with `arguments` in `folder`, which also holds its cache; like `subprocess.Popen`."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMPSEARCH_CACHE": str(folder / "cache")}
        environment.pop("HYDRA_FULL_ERROR", None)
        logs = folder / "output"
        logs.mkdir(exist_ok=True)
        number = len(list(logs.iterdir()))
        self._out, self._err = logs / f"{number}.out", logs / f"{number}.err"
        self._err.touch()
        # A daemon may have no children of its own, which runs in parallel are.
        self._process = _context.Process(
            target=_main, args=(str(folder), environment, list(arguments), str(self._out), str(self._err)), daemon=False
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it printed, once it has ended. Raises TimeoutError when it doesn't."""
        self._process.join(timeout)
        if self._process.is_alive():
            raise TimeoutError(f"still running after {timeout} s: {self._err.read_text()}")
        return self._out.read_text(), self._err.read_text()


def _main(folder: str, environment: Mapping[str, str], arguments: Sequence[str], out: str, err: str) -> None:
    for descriptor, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, descriptor)
        os.close(file)
    # A shell that runs these tests in the background has children ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["compsearch", *arguments]
    runpy.run_module("compsearch", run_name="__main__", alter_sys=True)
