"""policy.png: how much of each group is kept along the depth of the network (as in AMC's paper, its figure 3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from compsearch.report.operations import skipped_groups
from compsearch.report.style import BLACK, BLUE, GREY, new_figure, save, tidy
from compsearch.space import Policy, SearchSpace


def policy_figure(space: SearchSpace, policy: Policy, *, title: str, reference: Policy | None = None) -> Figure:
    """One bar per group, in forward order: kept units in front of all units, with the numbers.

    `reference` (the uniform policy, say) is drawn as a line. Groups whose channels several layers share are hatched
    and say by how many; groups within skipped blocks are dashed outlines. Raises ValueError when a policy does not
    belong to `space`.
    """
    space.check(policy)
    num_groups = len(space.groups)
    depth = np.arange(num_groups)
    figure = new_figure(max(6.4, 1.4 + 0.19 * num_groups), 4.8)
    axes = figure.subplots()
    tidy(axes)
    axes.grid(visible=False, axis="x")
    keep_ratio = space.counts(policy) / space.sizes
    axes.bar(depth, np.ones(num_groups), width=0.8, color="#E8E8E8", zorder=1)
    bars = axes.bar(depth, keep_ratio, width=0.8, color=BLUE, zorder=2, label="kept")
    for bar, group in zip(bars, space.groups, strict=True):
        if group.is_coupled:
            bar.set_hatch("////")
            bar.set_edgecolor("white")
            bar.set_linewidth(0.0)
    skipped = skipped_groups(space, policy)
    for bar, group in zip(bars, space.groups, strict=True):
        if group.name in skipped:
            # Whatever it would have kept: nothing of it is there.
            bar.set(height=1.0, facecolor="white", edgecolor=BLACK, linestyle="--", linewidth=0.9, hatch="")
    if reference is not None:
        space.check(reference)
        edges = np.arange(num_groups + 1) - 0.5
        axes.stairs(
            space.counts(reference) / space.sizes,
            edges,
            baseline=None,
            color=BLACK,
            linewidth=1.2,
            zorder=3,
            label="uniform",
        )
    labels = []
    for group, kept in zip(space.groups, space.counts(policy), strict=True):
        tied = f" (+{len(group.producers) - 1} tied)" if group.is_coupled else ""
        share = "skipped" if group.name in skipped else f"{kept}/{group.size}"
        labels.append(f"{group.name}{tied}  {share}")
    axes.set_xticks(depth, labels, rotation=90, fontsize=7)
    axes.set_xlim(-0.7, num_groups - 0.3)
    axes.set_ylim(0.0, 1.0)
    axes.set_ylabel("keep_ratio")
    axes.set_xlabel("group, from input to output, with kept / all", color=GREY)
    axes.set_title(title, fontsize=10)
    return figure


def save_policy(path: Path, space: SearchSpace, policy: Policy, *, title: str, reference: Policy | None = None) -> None:
    """Writes `policy_figure` as PNG."""
    save(policy_figure(space, policy, title=title, reference=reference), path)
