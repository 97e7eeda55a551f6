"""kept.png: what each member of a family keeps of each group, as a map: groups along the depth, budgets down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from compsearch.report.style import BLACK, GREY, new_figure, save
from compsearch.space import Policy, SearchSpace


def kept_figure(space: SearchSpace, policies: Mapping[str, Policy], *, title: str) -> Figure:
    """One row per policy (by its budget's name, largest first), one column per group; the number is the units kept.

    Raises ValueError when a policy does not belong to `space`.
    """
    for policy in policies.values():
        space.check(policy)
    counts = np.stack([space.counts(policy) for policy in policies.values()])  # [num_policies, num_groups]
    num_groups = len(space.groups)
    figure = new_figure(max(6.4, 1.8 + 0.27 * num_groups), 2.2 + 0.32 * len(policies))
    axes = figure.subplots()
    image = axes.imshow(counts / space.sizes, cmap="cividis", vmin=0.0, vmax=1.0, aspect="auto")
    for row, column in np.ndindex(counts.shape):
        is_dark = counts[row, column] / space.sizes[column] < 0.55
        color = "white" if is_dark else BLACK
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=6.5, color=color)
    axes.set_yticks(range(len(policies)), list(policies), fontsize=8)
    labels = [f"{group.name}{' (tied)' if group.is_coupled else ''}  {group.size}" for group in space.groups]
    axes.set_xticks(range(num_groups), labels, rotation=90, fontsize=7)
    axes.set_ylabel("budget (cost_ratio)")
    axes.set_xlabel("group, from input to output, with all its units", color=GREY)
    axes.set_title(f"{title}: units kept", fontsize=10)
    figure.colorbar(image, ax=axes, label="keep_ratio", pad=0.01)
    return figure


def save_kept(path: Path, space: SearchSpace, policies: Mapping[str, Policy], *, title: str) -> None:
    """Writes `kept_figure` as PNG."""
    save(kept_figure(space, policies, title=title), path)
