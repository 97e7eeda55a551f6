"""One run = one folder: who may write to it, under which config, and which stages are finished.

Example::

    with RunFolder(path, config) as folder:
        dense = folder.once("dense", measure_dense)  # measured at most once, however often the run is killed
        trials = search(searcher, Recorder(folder), budget=budget)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml  # type: ignore[import-untyped, unused-ignore]

from compsearch import atomic

CONFIG_FILE = "config.yaml"
STAGES_FILE = "stages.json"
OVERRIDES_FILE = "overrides.yaml"
ERROR_FILE = "error.log"
_GLANCE_S = 0.05
SUMMARY_FILE = "summary.json"
LOCK_FILE = ".lock"

#: Stages that are no work: they only say what a run reads (`compsearch.inputs`).
_IDLE_STAGES = ("inputs",)
#: How often a folder that another process takes away as this one enters is made again.
_ATTEMPTS = 10
_MISSING = "(not set)"
#: Settings that an error names; the rest are counted.
_MOST_NAMED = 6


class RunFolderError(ValueError):
    """A run folder that cannot be used, in one line that names the folder and the way out."""


class RunFolder:
    """The folder of one run, held by one process while the context is open.

    Entering creates the folder, locks it and writes `config` as config.yaml, or compares `config` with the one that is
    there. `config` is plain values (what YAML can say). `ignore` names dotted keys, each with everything below it,
    that may differ from what the run was begun with because no result depends on them; config.yaml keeps its first
    content. As long as nothing has come of a run, another config takes the place of its first; when it is left for an
    error of the user's then, its files go, and its folder unless that was there without a run.

    The lock is the operating system's and ends with the process, however that ends: ``kill -9`` leaves nothing to
    clean up.

    Entering raises RunFolderError when the folder cannot be created or written, is held by another process, holds
    something other than a run, or a run of another config. Nothing of an existing folder is changed then.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], *, ignore: Collection[str] = ()) -> None:
        self.path = Path(path)
        self._config_text: str = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        self._ignore = tuple(ignore)
        self._lock: int | None = None
        self._is_ours = False

    def __enter__(self) -> Self:
        with disk_errors(self.path):
            is_made, names = self._open()
        is_locked = LOCK_FILE in names
        self._is_ours = is_made or is_locked
        try:
            with disk_errors(self.path):
                has_begun = self._has_begun()
                if has_begun:
                    self._refuse_another_config()
                elif CONFIG_FILE in names and not is_locked and (self.path / CONFIG_FILE).exists():
                    raise RunFolderError(_not_its_own(self.path, f"a {CONFIG_FILE} that is no run's"))
                for leftover in self.path.glob(atomic.TEMPORARY_PATTERN):
                    leftover.unlink()
                if not has_begun:
                    # What was typed before may have been what kept it from beginning.
                    for name in (OVERRIDES_FILE, STAGES_FILE):
                        (self.path / name).unlink(missing_ok=True)
                    atomic.write_text(self.path / CONFIG_FILE, self._config_text)
        except BaseException:
            if not is_locked:
                with contextlib.suppress(OSError):
                    (self.path / LOCK_FILE).unlink()
            self.close()
            raise
        return self

    def _open(self) -> tuple[bool, set[str]]:
        """Locks the folder. Returns whether it had to be made, and what was in it."""
        for attempt in range(_ATTEMPTS):
            try:
                is_made = _make_folder(self.path)
                names = self._content()
                self._lock = _acquire(self.path / LOCK_FILE)
            except FileNotFoundError:  # another process has just left it, and took it away
                if attempt + 1 == _ATTEMPTS:
                    raise
            else:
                _held.add(self)
                return is_made, names
        raise AssertionError("the last attempt returns or raises")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, ValueError | OSError):
            with contextlib.suppress(OSError, RunFolderError):
                self._remove_unbegun()
        self.close()

    def close(self) -> None:
        """Lets another process have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            _held.discard(self)
            self._lock = None

    @property
    def is_finished(self) -> bool:
        """Whether the run has written its summary, the last thing a run does."""
        return (self.path / SUMMARY_FILE).exists()

    def write_text(self, name: str, text: str) -> Path:
        """Writes the file `name`, whole or not at all; RunFolderError when the disk refuses. So do the others."""
        return self._write(name, lambda path: atomic.write_text(path, text))

    def write_json(self, name: str, data: Mapping[str, Any]) -> Path:
        """Writes indented JSON; numbers that are not finite become null."""
        return self._write(name, lambda path: atomic.write_json(path, data))

    def write_torch(self, name: str, state: Mapping[str, Any]) -> Path:
        """Writes tensors and plain values, as ``torch.load(path, weights_only=True)`` reads them."""
        return self._write(name, lambda path: atomic.write_torch(path, state))

    def result(self, stage: str) -> dict[str, Any] | None:
        """What the finished `stage` found, None while it is not finished."""
        found = self._stages().get(stage)
        return None if found is None else dict(found)

    def finish(self, stage: str, result: Mapping[str, Any]) -> None:
        """Marks `stage` as finished with `result`, JSON values.

        Files that the stage makes must be written before. Raises ValueError when the stage is already finished.
        """
        stages = self._stages()
        if stage in stages:
            raise ValueError(f"a stage is finished once, but got {stage!r} again in {self.path}")
        self.write_json(STAGES_FILE, {**stages, stage: dict(result)})

    def once(self, stage: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The result of `stage`: the stored one, or `compute()`'s, which is then stored.

        Both come through JSON, so that a resumed run goes on with exactly what an uninterrupted one has.
        """
        if self.result(stage) is None:
            self.finish(stage, compute())
        result = self.result(stage)
        assert result is not None
        return result

    def _write(self, name: str, write: Callable[[Path], None]) -> Path:
        assert self._lock is not None, "a run folder is written to only while its context is open"
        path = self.path / name
        with disk_errors(path):
            write(path)
        return path

    def _stages(self) -> dict[str, Any]:
        path = self.path / STAGES_FILE
        try:
            return dict(json.loads(path.read_text()))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path} must be readable JSON, but {error}; delete it to redo its stages") from error

    def _has_begun(self) -> bool:
        """Whether anything has come of the config that is there, so that it must not change."""
        names = {entry.name for entry in self.path.iterdir()}
        idle = {CONFIG_FILE, OVERRIDES_FILE, ERROR_FILE}
        if not any(found for stage, found in self._stages().items() if stage not in _IDLE_STAGES):
            idle.add(STAGES_FILE)
        return CONFIG_FILE in names and any(not _precedes_config(name) and name not in idle for name in names)

    def _remove_unbegun(self) -> None:
        """Takes away what entering made, when nothing has come of it and nothing else is there."""
        # The config late: a process that enters meanwhile takes other files without one for somebody else's.
        own = (OVERRIDES_FILE, STAGES_FILE, CONFIG_FILE, LOCK_FILE)
        if self._lock is None or self._has_begun() or any(entry.name not in own for entry in self.path.iterdir()):
            return
        for name in own:
            (self.path / name).unlink(missing_ok=True)
        if self._is_ours:
            self.path.rmdir()

    def _content(self) -> set[str]:
        """What is in the folder. Raises RunFolderError when that is something other than a run."""
        names = {entry.name for entry in self.path.iterdir()}
        foreign = [name for name in names if not _precedes_config(name)]
        if foreign and CONFIG_FILE not in names:
            raise RunFolderError(_not_its_own(self.path, f"{min(foreign)!r} and no {CONFIG_FILE}"))
        return names

    def _refuse_another_config(self) -> None:
        differing = differing_keys(read_config(self.path), yaml.safe_load(self._config_text), ignore=self._ignore)
        if differing:
            more = f" and {len(differing) - _MOST_NAMED} more" if len(differing) > _MOST_NAMED else ""
            raise RunFolderError(
                f"a run is resumed under its own config, but {self.path} was begun with "
                f"{', '.join(differing[:_MOST_NAMED])}{more}; "
                "give another run_name, or delete that folder to start over"
            )


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], *, ignore: Collection[str]) -> list[str]:
    """How two configs differ, "key=old value (now new value)" each; `ignore` names dotted keys that may.

    A setting that `old` does not know (it is newer) and `new` leaves null makes no difference.
    """
    flat_old, flat_new = _flatten(old), _flatten(new)
    flat_new = {key: value for key, value in flat_new.items() if value is not None or key in flat_old}
    return [
        f"{key}={_shown(flat_old, key)} (now {_shown(flat_new, key)})"
        for key in dict.fromkeys([*flat_old, *flat_new])
        if not any(key == ignored or key.startswith(f"{ignored}.") for ignored in ignore)
        and (key not in flat_old or key not in flat_new or not _same(flat_old[key], flat_new[key]))
    ]


def read_config(path: Path) -> dict[str, Any]:
    """The config a run was begun with. Raises RunFolderError when `path` holds no readable run."""
    try:
        config = yaml.safe_load((path / CONFIG_FILE).read_text())
    except FileNotFoundError:
        raise RunFolderError(f"{path} is no run: it has no {CONFIG_FILE}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RunFolderError(
            f"{path / CONFIG_FILE} cannot be read: {reason}; delete the folder to start over"
        ) from error
    if not isinstance(config, dict):
        raise RunFolderError(f"{path / CONFIG_FILE} must be a mapping, but got {config!r:.40}; delete the folder")
    return config


def is_in_use(path: Path) -> bool:
    """Whether a process works in the run folder `path`."""
    try:
        descriptor = os.open(path / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals while `path` is written into one line."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written: {error.strerror or error}; nothing was left half-written, so make room or "
            "give a results folder you may write to, and run the same command again"
        ) from error


def _precedes_config(name: str) -> bool:
    """Whether a file may be there before config.yaml: our own first steps, and what Hydra writes as it starts."""
    return name in {LOCK_FILE, ".hydra"} or name.endswith(".log") or (name.startswith(".") and name.endswith(".tmp"))


def _not_its_own(path: Path, content: str) -> str:
    return f"a run needs a folder of its own, but {path} holds {content}; give another run_name, or move what is there"


def _make_folder(path: Path) -> bool:
    """Whether it was not there."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _acquire(path: Path) -> int:
    """The locked file `path`. Raises FileNotFoundError when its last owner has removed it meanwhile."""
    while True:
        descriptor = _locked(path)
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_GLANCE_S)  # another process may only have looked, as `is_in_use` does
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace") or "unknown"
        os.close(descriptor)
        raise RunFolderError(
            f"a run belongs to one process, but {path.parent} is in use by process {holder}; wait for it, or give "
            "another run_name"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


#: A forked child (a worker of a DataLoader or a pool) shares the parent's lock and may outlive a killed parent, which
#: would lock the folder until the child ends. So children drop their copy; the parent's lock is not affected.
_held: weakref.WeakSet[RunFolder] = weakref.WeakSet()


def _drop_in_child() -> None:
    for folder in list(_held):
        folder.close()


os.register_at_fork(after_in_child=_drop_in_child)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; an empty mapping is a value of its own."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _same(old: Any, new: Any) -> bool:
    return bool(old == new) or repr(old) == repr(new)  # repr: NaN is itself


def _shown(flat: Mapping[str, Any], key: str) -> str:
    if key not in flat:
        return _MISSING
    text = repr(flat[key])
    return text if len(text) <= 60 else f"{text[:57]}..."
