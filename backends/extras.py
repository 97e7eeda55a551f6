"""Packages that only some features need."""

from __future__ import annotations

import importlib
from types import ModuleType


def import_extra(name: str, *, extra: str) -> ModuleType:
    """The module `name`. Raises ValueError, with the command that installs it, where it is missing.

    `extra` is the name under ``[project.optional-dependencies]`` that brings it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:  # not there, or there and made for another machine
        raise ValueError(
            f"{name} must be installed for this, but importing it fails ({(str(error).splitlines() or ['?'])[0]}); "
            f"pip install 'compsearch[{extra}]'"
        ) from error
