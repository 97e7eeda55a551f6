"""What the networks of the comparison's page keep: counts per group, read from the run folders, written compactly.

A facet's runs decide on few distinct lists of groups, its *spaces*; each is written once, and a policy is then the
number of its space and a count per group.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from compsearch.comparison.comparison import Run
from compsearch.recorder import TRIALS_FILE


class PageSpaces:
    """The lists of groups that the policies of one facet are about, with their sizes as far as they are known."""

    def __init__(self) -> None:
        self._index: dict[tuple[str, ...], int] = {}
        self._sizes: dict[tuple[str, ...], list[int]] = {}

    def compact(
        self, counts: Mapping[str, int], operations: Mapping[str, str], *, each_operation: bool
    ) -> dict[str, Any]:
        """`counts` per group and the `operations` of blocks as the page's script reads them.

        `each_operation` writes the operation of every block, otherwise how often each is chosen.
        """
        names = tuple(counts)
        found: dict[str, Any] = {
            "space": self._index.setdefault(names, len(self._index)),
            "counts": list(counts.values()),
        }
        if operations:
            often = Counter(operations.values())
            found["operations"] = ", ".join(f"{name} ×{number}" for name, number in often.most_common())
            if each_operation:
                found["blocks"] = dict(operations)
        return found

    def learn_sizes(self, counts: Mapping[str, int], sizes: Mapping[str, int], kept: Mapping[str, float]) -> None:
        """Takes the groups' `sizes`, or finds them from the `counts` of a policy and its keep_ratios, `kept`."""
        names = tuple(counts)
        if names in self._sizes:
            return
        if all(name in sizes for name in names):
            self._sizes[names] = [sizes[name] for name in names]
        elif all(kept.get(name, math.nan) > 0 for name in names):
            self._sizes[names] = [round(count / kept[name]) for name, count in counts.items()]

    def to_json(self) -> list[dict[str, Any]]:
        """A space per number: its `groups`, and their `sizes` or None."""
        return [{"groups": list(names), "sizes": self._sizes.get(names)} for names in self._index]


def kept_of(kept: pd.DataFrame, run: str, budget: float | None) -> dict[str, float]:
    """The keep_ratio per group of one network in a frame of `KEPT_COLUMNS`; budget None for the only one of a run."""
    rows = kept[kept["run"] == run]
    if budget is not None and not math.isnan(budget):
        rows = rows[rows["budget"] == budget]
    return dict(zip(rows["group"], map(float, rows["keep_ratio"]), strict=True))


def trial_choices(run: Run, indices: Collection[int]) -> dict[int, tuple[dict[str, int], dict[str, str]]]:
    """Counts per group and operation per block of the trials called `indices`, as far as trials.jsonl has them whole.

    Only what the page shows is taken: building every `Policy` of a thousand trials would take most of its time.
    """
    wanted, found = set(indices), {}
    try:
        lines = (run.path / TRIALS_FILE).read_bytes().splitlines()
    except OSError:
        return {}
    index = 0  # among the lines that can be read, as the comparison counts them; its remarks say which can't
    for line in lines:
        try:
            row = json.loads(line)
            choices = (dict(row["counts"]), dict(row["policy"]["operations"]))
        except (ValueError, KeyError, TypeError):
            continue
        if index in wanted:
            found[index] = choices
        index += 1
    return found
