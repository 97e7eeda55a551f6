"""Hydra's multirun as a sweep: names for what is swept, variants of an ablation, one broken run among many.

With `cli` and `composition` the only modules that know Hydra.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compsearch import composition, job
from compsearch.run_folder import ERROR_FILE, SUMMARY_FILE, is_in_use
from compsearch.runner import Interrupted
from compsearch.sweep import ENVIRONMENT, Ledger, Outcome, Watcher, outcome_text, result_text

#: What a user can mend, and gets one line about.
USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)
_ABSENT = object()
_POLL_S = 1.0
_START_PATIENCE_S = 60.0

#: Settings that a run's name tells already.
_NAMED = frozenset(
    {
        *("searcher", "model", "model.name", "dataset", "dataset.name", "seed", "space", "variant", "run_name"),
        *("budget", "budget.cost_ratio", "budget.limit"),
    }
)
#: Hydra's options that take the next word for their value.
_WITH_VALUE = frozenset(
    {
        *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
        *("--package", "-p", "--cfg", "-c", "--experimental-rerun"),
    }
)
_logger = logging.getLogger(__name__)


def divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line's options and its overrides, each in their order: Hydra's parser takes none between others."""
    options: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for text in rest:
        if not text.startswith("-"):
            overrides.append(text)
            continue
        options.append("--info=all" if text in ("--info", "-i") else text)  # its own value is optional
        if text in _WITH_VALUE:
            options.extend(islice(rest, 1))
    return options, overrides


def labelled(overrides: Sequence[str]) -> list[str]:
    """`overrides` with a variant that tells runs apart by what is swept and not in their names.

    Two runs of ``recover=bn,lsq`` would share a folder otherwise. To a ``run_name`` all that is swept is added, unless
    it says itself what differs. As typed where nothing is missing, and where Hydra will find a mistake.
    """
    try:
        parsed = _parsed(overrides)
    except HydraException:
        return list(overrides)
    keys = [override.get_key_element() for override in parsed]
    swept = [key for key, override in zip(keys, parsed, strict=True) if override.is_sweep_override()]
    swept = [key for key in swept if not key.startswith("hydra")]
    if "run_name" in keys:
        name = next(override.value() for override in parsed if override.get_key_element() == "run_name")
        if not swept or not isinstance(name, str) or "${" in name:
            return list(overrides)
        rest = [text for text, key in zip(overrides, keys, strict=True) if key != "run_name"]
        return [*rest, f'run_name="{name}-{_resolver(swept)}"']
    unnamed = [key for key in swept if key not in _NAMED]
    if not unnamed:
        return list(overrides)
    field = "swept" if {"variant", "experiment"} & set(keys) else "variant"  # an experiment has variants of its own
    return [*overrides, f'{field}="{_resolver(unnamed)}"']


def _resolver(keys: Sequence[str]) -> str:
    names = ",".join(f"'{key}'" for key in keys)
    return f"${{swept:{names}}}"


def swept(*keys: str) -> str:
    """What this job of a sweep has for `keys`, as ``recover=bn,trials=10``. A resolver of the configuration."""
    values = _by_key(_job_overrides())
    return ",".join(f"{_label(key)}={values[key].get_value_element_as_str()}" for key in keys)


def _label(key: str) -> str:
    """`key` as a run's name says it: whole, as ``finalist.recover`` is not ``recover``, but for the searcher's own."""
    return key.rpartition("@")[2].removeprefix("searcher.")


def job_overrides(config: DictConfig) -> list[list[str]]:
    """The overrides of each job of the sweep that `config` describes, in the order that Hydra starts them."""
    params = {} if config.hydra.sweeper.params is None else dict(config.hydra.sweeper.params)
    typed = _texts(config.hydra.overrides.task)
    # With the loader, which knows what there is for a ``glob(*)`` to choose from.
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *typed])
    choices = {}  # as Hydra does, the last one of a key counts, at the place of the first
    for override in parsed:
        key = override.get_key_element()
        if override.is_sweep_override():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
    return [list(combination) for combination in product(*choices.values())]


class SweepCallback(Callback):
    """Opens the ledger of a sweep, where every job finds it through the environment, and watches over parallel jobs.

    Hydra calls it in the process that starts the jobs.
    """

    def __init__(self) -> None:
        self._watcher: Watcher | None = None

    def __reduce__(self) -> tuple[type[SweepCallback], tuple[()]]:
        return SweepCallback, ()  # launchers send it to the jobs' processes, where nothing is to be watched

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Before any job."""
        overrides = job_overrides(config)
        ledger = Ledger.create(Path(config.hydra.sweep.dir), overrides=overrides)
        os.environ[ENVIRONMENT] = str(ledger.path)
        logging.getLogger("hydra").setLevel(logging.WARNING)  # it would list every job's overrides
        print(f"sweep: {len(overrides)} runs; their settings are checked first", flush=True)
        if not is_sequential(config.hydra):
            # Bars of several processes would write over each other; the ends of the runs are shown instead.
            os.environ["TQDM_DISABLE"] = "1"
            self._watcher = Watcher(ledger, partial(print, flush=True))
            self._watcher.__enter__()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """After all jobs."""
        if self._watcher is not None:
            self._watcher.__exit__(None, None, None)


def is_sequential(hydra: DictConfig | HydraConf) -> bool:
    """Whether, by Hydra's own settings, runs come one after the other, all in this process."""
    return str(hydra.launcher._target_).rsplit(".", 1)[-1] == "BasicLauncher"


def run_job(config: DictConfig) -> None:
    """One run of a sweep: says in the ledger what became of it, and lets nothing but Ctrl-C end the others."""
    settings = HydraConfig.get()
    ledger = Ledger.of_environment()
    if ledger is None:  # Hydra turns what its callbacks raise into warnings
        raise ValueError(f"a sweep keeps its ledger in {settings.sweep.dir}; the warning above says why it can't")
    number, path, begun = settings.job.num, Path(settings.runtime.output_dir), time.monotonic()
    is_alone = is_sequential(settings)
    if not is_alone:
        logging.getLogger().setLevel(logging.WARNING)
    else:
        print(f"\nrun {number + 1} of {ledger.read().total}: {path.name}", flush=True)
    twin = next((job for job, run in ledger.read().started.items() if run == str(path)), None)
    ledger.start(number, path)
    try:
        if twin is not None:
            raise ValueError(f"a run needs a name of its own, but {path.name} is run {twin + 1}'s too; give run_name")
        values, overrides = varied(config, swept=_swept_keys(ledger))
        if not is_alone and composition.takes(values["searcher"], "learned", place="searcher"):
            _await_teachers(ledger, number)
        kind = "found" if (path / SUMMARY_FILE).is_file() else "done"
        summary = job.run(values, path, reuse=True, overrides=overrides)
        text = result_text(summary)
        (path / ERROR_FILE).unlink(missing_ok=True)
    except (Interrupted, KeyboardInterrupt) as interruption:
        # Hydra takes exceptions for failures of one job and starts the next one.
        raise KeyboardInterrupt(str(interruption)) from interruption
    except Exception as error:  # whatever it is, it must not take the other runs with it
        kind, text = "failed", composition.one_line(error)
        if not isinstance(error, USER_ERRORS):
            text = f"{type(error).__name__}: {text}; {path / ERROR_FILE} says where"
            with contextlib.suppress(OSError):
                (path / ERROR_FILE).write_text(traceback.format_exc())
    outcome = Outcome(number, str(path), kind, time.monotonic() - begun, text)
    ledger.end(outcome)
    if is_alone:
        print(f"{outcome_text(outcome)}\n{ledger.read().line(now=time.time())}", flush=True)


def varied(config: DictConfig, *, swept: Collection[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """The configuration of this run as plain values, its variant's settings among them, and what to type to repeat it.

    `variants` in the configuration maps names to lists of overrides, as in conf/experiment/; they come after what was
    typed. What was typed for a group that the variant replaces, and the new one does not know, is left out. Raises
    ValueError for a variant that is not there, and for one that would undo what is `swept`.
    """
    parsed = _parsed(_job_overrides())
    own = {name: _quoted(str(config[name])) for name in ("variant", "swept")}  # as it came out, not how
    overrides = [
        f"{override.get_key_element()}={own[override.get_key_element()]}"
        if override.get_key_element() in own
        else str(override.input_line)
        for override in parsed
    ]
    sources = HydraConfig.get().runtime.config_sources
    folders = [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
    variants: Mapping[str, Sequence[str]] = config.variants
    if not variants or not config.variant:
        return composition.plain(config), [*folders, *overrides]
    if config.variant not in variants:
        raise ValueError(f"`variant` must be one of {', '.join(variants)}, but got {config.variant!r}")
    more = [*variants[config.variant], f"run_name={_quoted(str(config.run_name))}"]
    composed, undone = _with_variant(_parsed(overrides), more)
    if lost := sorted(set(undone) & set(swept)):
        raise ValueError(
            f"a variant must leave what is swept as it is, but variant={config.variant} undoes {', '.join(lost)}; "
            "sweep it without that variant"
        )
    return composition.plain(composed), [*folders, *overrides]


def _swept_keys(ledger: Ledger) -> frozenset[str]:
    """The keys that have more than one value among the sweep's jobs."""
    values: dict[str, set[str]] = {}
    for overrides in ledger.read().overrides:
        for key, override in _by_key(overrides).items():
            values.setdefault(key, set()).add(override.get_value_element_as_str())
    return frozenset(key for key, found in values.items() if len(found) > 1)


def _with_variant(typed: Sequence[Override], more: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The configuration of `typed` and then `more`, a variant's, and the keys typed that the variant leaves out."""
    replaced = _by_key(more)
    kept = [override for override in typed if override.get_key_element() not in replaced]
    below = tuple(f"{key}." for key in replaced)
    inside = [override for override in kept if override.get_key_element().lstrip("+~").startswith(below)]
    settled = [str(override.input_line) for override in kept if override not in inside]
    known = compose("config", [*settled, *more])
    fitting = []
    undone = [override.get_key_element() for override in typed if override not in kept]
    undone = [key for key in undone if key != "run_name"]  # the same name
    for override in inside:
        if OmegaConf.select(known, override.get_key_element().lstrip("+~"), default=_ABSENT) is _ABSENT:
            _logger.info("%s is not among the settings of this variant and left out", override.input_line)
            undone.append(override.get_key_element())
        else:
            fitting.append(str(override.input_line))
    return (compose("config", [*settled, *fitting, *more]) if fitting else known), undone


def _quoted(text: str) -> str:
    """`text` as the value of an override, whatever it holds."""
    return str(QuotedString(text, Quote.single).with_quotes())


def _await_teachers(ledger: Ledger, number: int) -> None:
    """Waits for the jobs before `number` whose ranking its run can take over: the same ones at lower cost_ratios.

    Whether a ranking is learned or taken over must not depend on which process is faster.
    """
    all_overrides = ledger.read().overrides
    teachers = [index for index in range(number) if _is_lower(all_overrides[index], all_overrides[number])]
    for teacher in teachers:
        patience = _START_PATIENCE_S
        while True:
            status = ledger.read()
            if any(outcome.job == teacher for outcome in status.outcomes):
                break
            run = status.started.get(teacher)
            # A process that was killed says no end; one that hasn't started may never.
            patience = _START_PATIENCE_S if run and is_in_use(Path(run)) else patience - _POLL_S
            if patience <= 0:
                _logger.warning("job %d is not seen to learn its ranking; job %d learns its own", teacher, number)
                break
            time.sleep(_POLL_S)


def _is_lower(other: Sequence[str], own: Sequence[str]) -> bool:
    """Whether two jobs differ in nothing but a lower cost_ratio of the `other`."""
    theirs, mine = (
        {key: override.get_value_element_as_str() for key, override in _by_key(each).items()} for each in (other, own)
    )
    lower, higher = theirs.pop("budget.cost_ratio", ""), mine.pop("budget.cost_ratio", "")
    try:
        return theirs == mine and float(lower) < float(higher)
    except ValueError:
        return False


def _job_overrides() -> list[str]:
    return _texts(HydraConfig.get().overrides.task)


def _texts(overrides: Any) -> list[str]:
    # Unresolved: one of them may be an interpolation that asks for all of them.
    texts = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(texts, list)
    return [str(text) for text in texts]


def _parsed(overrides: Sequence[str]) -> list[Override]:
    parsed: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    return parsed


def _by_key(overrides: Sequence[str]) -> dict[str, Override]:
    return {override.get_key_element(): override for override in _parsed(overrides)}


# A process that a launcher starts imports this module to get its task, and composes the task's configuration next.
composition.register()
OmegaConf.register_new_resolver("swept", swept, replace=True)
