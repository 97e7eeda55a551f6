"""Finished runs in the folders beside one: what its plots can be compared with."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from compsearch.run_folder import SUMMARY_FILE
from compsearch.summary import Summary


def finished_beside(path: Path, summary: Summary) -> list[Summary]:
    """The summaries of other searchers' runs on the same network and data, by folder name.

    The same: model, dataset and recovery by name, and dense costs and test accuracy to the last digit.
    """
    found = []
    for file in sorted(path.parent.glob(f"*/{SUMMARY_FILE}")):
        if file.parent == path:
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            other = Summary.from_json(json.loads(file.read_text()))
            if other.searcher != summary.searcher and _what(other) == _what(summary):
                found.append(other)
    return found


def _what(summary: Summary) -> tuple[object, ...]:
    dense = summary.dense
    return (summary.model, summary.dataset, summary.recovery, dense.macs, dense.params, dense.accuracy_test)
