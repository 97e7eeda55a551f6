"""What a run is: types, the run loop, its record and its report.

`compress` is the whole tool as one function; ``python -m compsearch`` is the same from the command line.
"""

from compsearch.space import Group, Policy, SearchSpace

__all__ = ["Compressed", "Group", "Policy", "SearchSpace", "compress", "export", "load"]


def __getattr__(name: str) -> object:
    # Late, so that importing a type doesn't load Hydra and pandas.
    if name in ("compress", "Compressed"):
        from compsearch import api

        return getattr(api, name)
    if name == "load":
        from compsearch.loading import load

        return load
    if name == "export":
        from compsearch.exporting import export

        return export
    raise AttributeError(f"module 'compsearch' has no attribute {name!r}")
