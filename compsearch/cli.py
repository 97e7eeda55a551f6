"""The command line: ``python -m compsearch [inspect | latency] [overrides]``, ``… export <run folder> [overrides]``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

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


def main() -> None:
    """Runs the command in `sys.argv`; exits 0, 1 with one line on stderr, or 130 when interrupted."""
    command = "search"
    if len(sys.argv) > 1 and sys.argv[1] in ("inspect", "latency", "export", "report"):
        command = sys.argv.pop(1)
    if command == "latency":
        # What it measures; both can still be set, as what is typed comes later.
        sys.argv[1:1] = ["budget=latency", f"run_name='{_LATENCY_RUN_NAME}'"]
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "") not in ("", "0")
    # With its own reporting off, Hydra hands exceptions on, and the user gets one line rather than a page.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        if command == "export":
            print(exporting.run_command(sys.argv[1:]))
        elif command == "report":
            print(run_command(sys.argv[1:]))
        elif command == "search":
            _search()
        else:
            sys.argv.append("~hydra.callbacks.sweep")
            _run(command)
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


def _search() -> None:
    """One run, or a sweep of many, which ends with their comparison; exits with 1 when a run of a sweep failed."""
    sys.argv[1:] = multirun.labelled(multirun.flag_first(sys.argv[1:]))
    os.environ.pop(ENVIRONMENT, None)
    _run("search")
    ledger = Ledger.of_environment()
    if ledger is None:
        return
    status = ledger.read()
    print(f"\n{status.report()}", flush=True)
    if status.num_finished:
        print(f"\n{compare(status.runs)}")
    if status.of_kind("failed"):
        sys.exit(1)


def _run(command: str) -> None:
    failures: list[BaseException] = []

    def task(config: DictConfig) -> None:
        settings = HydraConfig.get()
        path = Path(settings.runtime.output_dir)
        if settings.mode == RunMode.MULTIRUN and command == "search":
            multirun.run_job(config)
            return
        try:
            values = composition.plain(config)
            if command == "inspect":
                print(job.inspect(values))
            elif command == "latency":
                print(report_latency(values, path, ignore=job.irrelevant(values)))
            else:
                overrides = [str(text) for text in settings.overrides.task]
                print(job.shown(job.run(values, path, overrides=overrides), path))
        except (*USER_ERRORS, Interrupted, KeyboardInterrupt) as error:
            # In a sweep Hydra must see the failure, so that it marks the job and goes on with the rest; alone, the
            # exception is kept from it, or it would print a page of its own first.
            if settings.mode == RunMode.MULTIRUN:
                raise
            failures.append(error)

    composition.register()
    hydra.main(
        version_base=composition.HYDRA_VERSION_BASE, config_path=str(composition.conf_dir()), config_name="config"
    )(task)()
    if failures:
        raise failures[0]
