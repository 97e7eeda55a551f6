"""The command line: ``python -m compsearch [inspect | latency] [overrides]``, ``… export <run folder> [overrides]``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from compsearch import composition, exporting, job
from compsearch.latency_report import report_latency
from compsearch.runner import Interrupted

_LATENCY_RUN_NAME = (
    "latency-${model.name}-${dataset.name}-${runtime_label:${runtime}}"
    "-batch${latency.batch_size}-threads${latency.threads}"
)
USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)


def main() -> None:
    """Runs the command in `sys.argv`; exits 0, 1 with one line on stderr, or 130 when interrupted."""
    command = "search"
    if len(sys.argv) > 1 and sys.argv[1] in ("inspect", "latency", "export"):
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
        else:
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


def _run(command: str) -> None:
    failures: list[BaseException] = []

    def task(config: DictConfig) -> Any:
        settings = HydraConfig.get()
        try:
            values = composition.plain(config)
            if command == "inspect":
                print(job.inspect(values))
            elif command == "latency":
                print(report_latency(values, Path(settings.runtime.output_dir), ignore=job.irrelevant(values)))
            else:
                is_sweep = settings.mode == RunMode.MULTIRUN
                job.run(values, Path(settings.runtime.output_dir), reuse=is_sweep)
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
