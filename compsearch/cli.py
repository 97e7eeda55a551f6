"""The command line: ``python -m compsearch [inspect | latency] [overrides]``, ``… export <run folder> [overrides]``."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from compsearch import composition, exporting, job, multirun
from compsearch.comparison.report import compare, run_command
from compsearch.latency_report import report_latency
from compsearch.multirun import USER_ERRORS
from compsearch.runner import Interrupted
from compsearch.sweep import ENVIRONMENT, Ledger

_LATENCY_RUN_NAME = (
    "latency-${model.name}-${dataset.name}-${runtime_label:${runtime}}"
    "-batch${latency.batch_size}-threads${latency.threads}"
)
_COMMANDS = ("inspect", "latency", "export", "report")
_HELP = """python -m compsearch [command] [key=value ...]

Without a command it searches: once, or with -m for each of several values, as in -m seed=0,1 searcher=amc,legr
  inspect              shows what can be pruned in the network, and what not and why
  latency              measures the network's latency, and how it is predicted, without a search
  export <run folder>  writes the network of a finished run as a file for other runtimes
  report <folders>     compares the runs in folders
"""


def main() -> None:
    """Runs the command in `sys.argv`; exits 0, 1 with one line on stderr, or 130 when interrupted."""
    command = "search"
    if len(sys.argv) > 1 and sys.argv[1] in _COMMANDS:
        command = sys.argv.pop(1)
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "") not in ("", "0")
    # With its own reporting off, Hydra hands exceptions on, and the user gets one line rather than a page.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        if command == "export":
            print(exporting.run_command(sys.argv[1:]))
        elif command == "report":
            print(run_command(sys.argv[1:]))
        elif command == "search":
            _search(wants_traceback=wants_traceback)
        else:
            _look(command)
    except Interrupted as interruption:
        print(f"\ncompsearch: {interruption}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("\ncompsearch: interrupted; the same command starts again where the run folder stands", file=sys.stderr)
        sys.exit(130)
    except USER_ERRORS as error:
        if wants_traceback:
            raise
        print(f"compsearch: error: {composition.one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _words() -> tuple[list[str], list[str]]:
    """What was typed after the command: Hydra's options, and the settings. Raises ValueError for anything else."""
    options, overrides = multirun.divided(sys.argv[1:])
    for text in overrides:
        if "=" not in text and not text.startswith("~"):  # ~key takes a setting away
            raise ValueError(
                f"a setting must be key=value, but got {text!r}; the commands, which come first, are "
                f"{', '.join(_COMMANDS)}, and --help shows the settings"
            )
    if {"--help", "-h"} & set(options):
        overrides.append(f'hydra.help.header="{_HELP}"')
    return options, overrides


def _look(command: str) -> None:
    """The commands ``inspect`` and ``latency``, which search nothing."""
    options, overrides = _words()
    # What it measures; both can still be set, as what is typed comes later.
    own = ["budget=latency", f"run_name='{_LATENCY_RUN_NAME}'"]
    before = own if command == "latency" else ["hydra.run.dir=."]  # inspecting leaves nothing behind
    is_sweep = bool({"-m", "--multirun"} & set(options))
    # An experiment may be a sweep: it is looked at once.
    after = ["~hydra.callbacks.sweep", *([] if is_sweep else ["hydra.mode=RUN"])]
    sys.argv[1:] = [*options, *before, *overrides, *after]
    _run(command)


def _search(*, wants_traceback: bool) -> None:
    """One run, or a sweep of many, which ends with their comparison; exits with 1 when a run of a sweep is missing."""
    options, overrides = _words()
    sys.argv[1:] = [*options, *multirun.labelled(overrides)]
    os.environ.pop(ENVIRONMENT, None)
    failure: Exception | None = None
    try:
        _run("search")
    except Exception as error:  # what breaks a sweep, a killed worker say, leaves the runs that were done
        if wants_traceback or Ledger.of_environment() is None:
            raise
        failure = error
    ledger = Ledger.of_environment()
    if ledger is None:
        return
    status = ledger.read()
    print(f"\n{status.report()}", flush=True)
    if status.num_finished:
        print(f"\n{compare(status.runs)}", flush=True)
    if failure is not None:
        is_mistyped = isinstance(failure, HydraException | OmegaConfBaseException)
        way_out = "mend the command, as the same one ends here again" if is_mistyped else "the same command goes on"
        reason = composition.one_line(failure)
        print(f"compsearch: error: the sweep ended early; {way_out}: {reason}", file=sys.stderr)
    if failure is not None or status.num_finished < status.total:
        sys.exit(1)


def _run(command: str) -> None:
    failures: list[BaseException] = []

    def task(config: DictConfig) -> None:
        settings = HydraConfig.get()
        path = Path(settings.runtime.output_dir)
        if settings.mode == RunMode.MULTIRUN and command == "search":
            multirun.run_job(config)
            _remove_empty(path)
            return
        try:
            values, overrides = multirun.varied(config)
            if command == "inspect":
                print(job.inspect(values))
            elif command == "latency":
                print(report_latency(values, path, ignore=job.irrelevant(values)))
            else:
                print(job.shown(job.run(values, path, overrides=overrides), path))
        except (*USER_ERRORS, Interrupted, KeyboardInterrupt) as error:
            # In a sweep Hydra must see the failure, so that it marks the job and goes on with the rest; alone, the
            # exception is kept from it, or it would print a page of its own first.
            if settings.mode == RunMode.MULTIRUN:
                raise
            failures.append(error)
        finally:
            _remove_empty(path)

    composition.register()
    hydra.main(
        version_base=composition.HYDRA_VERSION_BASE, config_path=str(composition.conf_dir()), config_name="config"
    )(task)()
    if failures:
        raise failures[0]


def _remove_empty(path: Path) -> None:
    """Takes away the folder that Hydra made for a run that nothing has come of."""
    with contextlib.suppress(OSError):  # in use, mostly
        if not path.samefile(Path.cwd()):
            path.rmdir()
