"""From configuration to objects: with `cli` and `multirun`, the only module that knows Hydra.

Everything below the configuration gets plain values. A node with `_target_` names a class or function; its other keys
are arguments, and collaborators (the space, the evaluator, …) arrive by the names the target's signature asks for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from compsearch.collaborators import collaborate
from compsearch.schema import LEAST, MISSING, Config, ExportConfig, setting_names, unknown_setting

HYDRA_VERSION_BASE = "1.3"
#: Characters of a variant in a run's name, which must stay below 255 bytes.
_LONGEST_LABEL = 100
#: What a missing value is to be, by the last part of its key.
_EXAMPLES = {"_target_": "package.module.Class", "root": "<folder>"}
#: How messages name settings: `finetune.epochs`, budget.cost_ratio=0.5.
_SETTING = re.compile(rf"\b(?:{'|'.join(field.name for field in dataclasses.fields(Config))})(?:\.\w|=)")


def conf_dir() -> Path:
    """The folder of yaml files: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).resolve().parent / "conf"
    return inside if inside.is_dir() else inside.parent.parent / "conf"


def register() -> None:
    """Tells Hydra the schema, the labels in a run's name, and every torchvision classifier as a choice of `model`."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="export_schema", node=ExportConfig)
    for name in _target("backends.zoo.torchvision_names", "model")():
        store.store(group="model", name=name, node={"defaults": ["torchvision", "_self_"], "name": name})
    if not OmegaConf.has_resolver("budget_label"):
        OmegaConf.register_new_resolver("budget_label", _budget_label)
        OmegaConf.register_new_resolver("run_label", _run_label)
        OmegaConf.register_new_resolver("runtime_label", _runtime_label)
        OmegaConf.register_new_resolver("choices_of", ",".join)
        OmegaConf.register_new_resolver("share", _share)
        OmegaConf.register_new_resolver("at_most", _at_most)
        OmegaConf.register_new_resolver("decay", _decay)


def _runtime_label(runtime: Mapping[str, Any]) -> str:
    """What a run's name says of the runtime that its latency is of."""
    name = str(runtime["_target_"]).rsplit(".", 1)[-1].removesuffix("Runtime").lower()
    return f"{name}-channels_last" if runtime.get("channels_last") else name


def _run_label(space: str, stages: Sequence[float] | None, variant: str, swept: str) -> str:
    """What a run's name says of the space, the stages and what is swept: nothing where they are the usual ones."""
    labels = ["" if space == "channels" else space, "stages" if stages else "", _file_name(variant), _file_name(swept)]
    return "".join(f"-{label}" for label in labels if label)


def _file_name(text: str) -> str:
    """`text` as part of a file's name: a slash or a quotation mark becomes _, and what is too long a hash of it."""
    name = re.sub(r"[^\w.,=+-]+", "_", text).strip("_")
    if len(name) <= _LONGEST_LABEL:
        return name
    return f"{name[: _LONGEST_LABEL - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _budget_label(
    resource: str, cost_ratio: float | None, limit: float | None, cost_ratios: Sequence[float] | None
) -> str:
    if limit is not None:
        return f"{resource}{limit:g}abs"
    if cost_ratios:
        return f"{resource}{min(cost_ratios):g}to{max(cost_ratios):g}"
    return resource if cost_ratio is None else f"{resource}{cost_ratio:g}"


def _share(fraction: float, total: int) -> int:
    """`fraction` of `total`, at least 1."""
    _check_number(total)
    return max(1, round(fraction * total))


def _at_most(most: float, value: float) -> float:
    _check_number(value)
    return min(most, value)


def _decay(end: float, num_steps: int, num_before: int) -> float:
    """The factor per step that takes 1 to `end` over the `num_steps` but for the first `num_before`."""
    _check_number(num_steps)
    _check_number(num_before)
    return float(end ** (1 / max(1, num_steps - num_before)))


def _check_number(value: object) -> None:
    if not isinstance(value, int | float):
        raise ValueError(f"a setting that others follow from must be a number, but got {value!r}")


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration resolved, as plain dicts and lists.

    Raises ValueError for a value that is missing, a setting that is unknown and a number below the least.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(one_line(error)) from error
    settings = typing.cast(dict[str, Any], values)
    _check_settings(settings, OmegaConf.get_type(config))
    return settings


def _check_settings(settings: Mapping[str, Any], schema: type[Any] | None) -> None:
    if schema in (Config, ExportConfig):
        known = {field.name for field in dataclasses.fields(schema)}
        for key in settings:
            if key not in known:  # a + on the command line gets any key past Hydra
                raise ValueError(unknown_setting(key, setting_names(schema)))
    for key, least in LEAST.items():
        group, _, name = key.rpartition(".")
        value = (settings.get(group, {}) if group else settings).get(name, least)
        if value < least:
            raise ValueError(f"`{key} >= {least}` must hold, but got {key}={value}")


def compose_config(overrides: Sequence[str], *, name: str = "config") -> dict[str, Any]:
    """The configuration of the command line `overrides`, usable inside a program that runs Hydra itself.

    `name` is the file in conf/ that it starts from: a run's, or that of another command.
    """
    state = Singleton.get_state()
    try:
        GlobalHydra.instance().clear()
        register()
        with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
            return plain(compose(name, overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(one_line(error)) from error
    finally:
        Singleton.set_state(state)


def one_line(error: BaseException) -> str:
    """An error's message on one line; Hydra's with its cause, and where it can be said, with the way out."""
    cause = error.__cause__
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        return _missing_value(error)
    is_refused = str(error).startswith("Could not override")  # and Hydra would advise to add it with a +
    if is_refused and isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(cause)
    lines = [line.strip() for line in str(error).splitlines()]
    kept = []
    for line in lines:
        if line.startswith(("Config search path", "full_key:", "object_type=", "reference_type=")):
            break
        if line:
            kept.append(line)
    text = " ".join(kept).replace(": Available", ". Available")
    if isinstance(error, HydraException) and str(cause or ""):
        first = str(cause).splitlines()[0]
        text = text if first in text else f"{text}: {first}"
    return text or type(error).__name__


def _unknown_key(error: ConfigAttributeError | ConfigKeyError) -> str:
    if error.object_type in (Config, ExportConfig):
        return unknown_setting(str(error.full_key), setting_names(error.object_type))
    parent = OmegaConf.to_container(error.parent_node) if isinstance(error.parent_node, DictConfig) else {}
    assert isinstance(parent, dict)
    key, target = str(error.full_key), str(parent.get("_target_", ""))
    message = unknown_setting(key, [str(name) for name in parent if not str(name).startswith("_")])
    if target == MISSING:  # as yet: settings are set in the order typed
        target = f"{key.rpartition('.')[0]}._target_"
    # All that our own classes take stands in conf/, of other people's we don't know.
    is_ours = target.split(".")[0] in ("", "backends", "compsearch", "searchers")
    return message if is_ours else f"{message}; +{key}=<value> passes it to {target}"


def _missing_value(error: MissingMandatoryValue | InterpolationToMissingValueError) -> str:
    # An interpolation's own key is of what asks for the value; the message ends in the key that is asked for.
    asked_for = error.full_key if isinstance(error, MissingMandatoryValue) else str(error).splitlines()[0].split()[-1]
    key = str(asked_for)
    example = _EXAMPLES.get(key.rpartition(".")[2], "<value>")
    return f"`{key}` must be set, but has no value; add {key}={example}"


def make(node: Any, available: Mapping[str, Any], *, place: str = "") -> Any:
    """Builds what a configuration node names; nodes inside it first. Other values pass through.

    `available` maps collaborator names to objects; those the target's signature names are passed. Raises ValueError
    for a target that can't be imported, an argument it doesn't take, and a value of another type than it declares. To
    a ValueError of the target's that names no setting, `place` is added.
    """
    if isinstance(node, list):
        return [make(item, available, place=f"{place}[{index}]") for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    values = {key: make(value, available, place=f"{place}.{key}".lstrip(".")) for key, value in node.items()}
    path = values.pop("_target_", None)
    if path is None:
        return values
    target = _target(path, place)
    _check_arguments(target, values, place)
    factory = partial(target, **values)
    try:
        return factory(**collaborate(factory, available))
    except ValueError as error:
        if type(error) is not ValueError or not place or _names_setting(str(error), place):
            raise
        raise ValueError(f"{place}: {error}") from error


def make_network(node: Mapping[str, Any], available: Mapping[str, Any]) -> Any:
    """Builds the dense network that `node`, at ``model.build``, names, as `make` does.

    A target that takes any keyword, as timm.create_model does, is told the number of classes, unless it refuses it, and
    of the other collaborators those it names. Raises ValueError for arguments that it can't be called with.
    """
    attempts = [node]
    if _takes_any(_target(node["_target_"], "model.build")):
        if "num_classes" not in node:
            attempts.insert(0, {**node, "num_classes": available["num_classes"]})
        available = {name: value for name, value in available.items() if takes(node, name, place="model.build")}
    for attempt in attempts:
        try:
            return make(attempt, available, place="model.build")
        except TypeError as error:
            if attempt is node or "num_classes" not in str(error):
                raise ValueError(
                    f"`model.build` must be what {node['_target_']} can be called with, but {error}; "
                    "HYDRA_FULL_ERROR=1 shows where"
                ) from error
    raise AssertionError("the last attempt returns or raises")


def _takes_any(target: Callable[..., Any]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(target).parameters.values())


def _names_setting(text: str, place: str) -> bool:
    """Whether a message about what is at `place` names it or any setting."""
    top = re.split(r"[.\[]", place)[0]
    return _SETTING.search(text) is not None or re.search(rf"\b{re.escape(top)}\b", text) is not None


def check(node: Any, *, place: str = "") -> None:
    """Raises ValueError as `make` would for any target or argument in `node`, without building anything."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            check(item, place=f"{place}[{index}]")
    if isinstance(node, dict):
        values = {key: value for key, value in node.items() if key != "_target_"}
        for key, value in values.items():
            check(value, place=f"{place}.{key}".lstrip("."))
        if "_target_" in node:
            scalars = {key: value for key, value in values.items() if not isinstance(value, dict | list)}
            _check_arguments(_target(node["_target_"], place), scalars, place)


def check_complete(node: Mapping[str, Any], collaborators: Collection[str], *, place: str) -> None:
    """Raises ValueError when the target of `node` requires what is neither in it nor one of the `collaborators`."""
    bound = {key: value for key, value in node.items() if key != "_target_"}
    try:
        collaborate(partial(_target(node["_target_"], place), **bound), dict.fromkeys(collaborators))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def asks_for(node: Any, collaborators: Collection[str], *, place: str) -> bool:
    """Whether a target in `node` would be passed any of `collaborators`. Raises ValueError as `make` does."""
    if isinstance(node, list):
        return any(asks_for(item, collaborators, place=f"{place}[{index}]") for index, item in enumerate(node))
    if not isinstance(node, dict):
        return False
    names = [name for name in collaborators if name not in node]
    return ("_target_" in node and any(takes(node, name, place=place) for name in names)) or any(
        asks_for(value, collaborators, place=f"{place}.{key}") for key, value in node.items()
    )


def takes(node: Mapping[str, Any], argument: str, *, place: str) -> bool:
    """Whether the target of `node` has an argument of that name. Raises ValueError as `make` does."""
    return argument in inspect.signature(_target(node["_target_"], place)).parameters


def offers(node: Mapping[str, Any], attribute: str, *, place: str) -> bool:
    """Whether what the target of `node` builds has an attribute of that name. Raises ValueError as `make` does."""
    return hasattr(_target(node["_target_"], place), attribute)


def _target(path: str, place: str) -> Callable[..., Any]:
    try:
        target: Callable[..., Any] = pkgutil.resolve_name(path)
    except Exception as error:  # importing a user's module can raise anything
        first = (str(error.__cause__ or error).splitlines() or [""])[0]
        raise ValueError(f"`{place}._target_` must name something importable, but {path!r} fails: {first}") from error
    return target


def _check_arguments(target: Callable[..., Any], values: Mapping[str, Any], place: str) -> None:
    parameters = inspect.signature(target).parameters
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, AttributeError, TypeError):  # annotations of a user's class that don't resolve
        hints = {}
    for name, value in values.items():
        if name not in parameters and not _takes_any(target):
            names = ", ".join(parameters)
            raise ValueError(f"`{place}.{name}` must be an argument of {target.__qualname__}, which takes {names}")
        expected = _plain_types(hints.get(name))
        if expected and not _fits(value, expected):
            wanted = " or ".join("null" if kind is types.NoneType else kind.__name__ for kind in expected)
            raise ValueError(f"`{place}.{name}` must be {wanted}, but got {value!r}")


def _plain_types(hint: Any) -> tuple[type, ...]:
    """The scalar types a hint allows; empty when it allows anything else."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    scalars = (bool, int, float, str, types.NoneType)
    return tuple(members) if members and all(member in scalars for member in members) else ()


def _fits(value: Any, expected: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in expected
    if isinstance(value, int) and float in expected:
        return True
    return isinstance(value, expected)
