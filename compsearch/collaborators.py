"""Which collaborators a factory asks for: a searcher names what it needs in its signature and gets nothing else."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any


def collaborate(factory: Callable[..., Any], available: Mapping[str, Any]) -> dict[str, Any]:
    """The `available` collaborators that the signature of `factory` names, to be passed by keyword.

    Looks through `functools.partial`: what the partial binds already stands, even where a collaborator has that name.
    A factory that takes ``**kwargs`` gets every collaborator. Raises ValueError, in one line, when the factory
    requires a name that is neither bound nor available, or when the partial binds a name that the factory lacks.
    """
    target, bound = (factory.func, factory.keywords) if isinstance(factory, functools.partial) else (factory, {})
    name = getattr(target, "__qualname__", repr(target))
    parameters = inspect.signature(target).parameters.values()
    named = {parameter.name for parameter in parameters}
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    unknown = [key for key in bound if key not in named and not takes_all]
    if unknown:
        raise ValueError(f"{name} must be given its own options, but got {', '.join(unknown)}; it takes {_list(named)}")
    positional = len(factory.args) if isinstance(factory, functools.partial) else 0
    missing = [
        parameter.name
        for parameter in list(parameters)[positional:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and parameter.name not in bound
        and parameter.name not in available
    ]
    if missing:
        raise ValueError(
            f"{name} must be given every argument without a default, but {', '.join(missing)} is neither configured "
            f"nor a collaborator; collaborators are {_list(available)}"
        )
    return {key: value for key, value in available.items() if (takes_all or key in named) and key not in bound}


def _list(names: Any) -> str:
    return ", ".join(sorted(names))
