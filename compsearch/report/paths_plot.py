"""paths.png: what a search over paths believed while it trained, choice by choice.

The visualisation of ProxylessNAS (Cai et al., ICLR 2019, arXiv:1812.00332), as areas, one panel per choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, MaxNLocator

from compsearch.paths import PathState
from compsearch.report.captions import balanced, counted
from compsearch.report.operations import ZERO_HATCH, forward_order, operation_colors, short_names
from compsearch.report.style import BLACK, GREY, new_figure, save
from compsearch.space import ZERO, FloatArray, SearchSpace
from compsearch.trial import Trial

#: Widths are so coloured, as in kept.png: all of a group is the lightest.
_WIDTHS = matplotlib.colormaps["cividis"]
#: More widths than these are not all named in the legend.
_MOST_WIDTHS = 8
_TITLE_WIDTH = 19
#: Inches: panels where there are more than `_MANY`, and fewer; between them; left and right of them.
_SMALL, _LARGE, _MANY = (1.2, 0.72), (1.45, 1.0), 30
_GAP_X, _GAP_Y, _LEFT, _RIGHT = 0.16, 0.24, 0.45, 0.12


@dataclass(frozen=True)
class PathStep:
    """A trial that was derived in the course of a search over paths: its place among the trials, what was believed."""

    index: int
    trial: Trial
    state: PathState


def path_history(trials: Iterable[Trial]) -> list[PathStep]:
    """Those of `trials` that say what their search believed, by epoch; of several at one epoch (rolled back) the last.

    Beliefs that are not finite are left out. Empty where no trial says any.
    """
    by_epoch: dict[int, PathStep] = {}
    for index, trial in enumerate(trials):
        state = PathState.from_genome(trial.genome)
        if state is not None and all(math.isfinite(p) for each in state.probabilities.values() for p in each.values()):
            by_epoch[state.epoch] = PathStep(index, trial, state)
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def warmup_end(history: Sequence[PathStep]) -> int | None:
    """The last epoch before the probabilities first moved; None where they never did, or had by the second step."""
    if not history:
        return None
    first = history[0].state.probabilities
    still = 0
    while still < len(history) and history[still].state.probabilities == first:
        still += 1
    # A single step can't tell whether its own epoch had moved them.
    return history[still - 1].state.epoch if 1 < still < len(history) else None


def paths_figure(space: SearchSpace, history: Sequence[PathStep], *, title: str) -> Figure:
    """One panel per choice, in forward order: the candidates' probabilities over epochs, stacked from the dense one up.

    Over each panel stand the choice and the candidate that is likeliest at the end. Choices of a single candidate are
    left out and counted in the title. Raises ValueError when `history` is empty.
    """
    if not history:
        raise ValueError("at least one trial must say what its search believed, but none does; draw nothing")
    last = history[-1].state.probabilities
    choices = [name for name in forward_order(space, last) if len(last[name]) > 1]
    blocks = {block.name for block in space.blocks}
    colors = _candidate_colors(last, blocks)
    begin = warmup_end(history)
    handles = _legend(colors, begin is not None)
    figure, panels = _panels(len(choices), handles, [f"{title}: paths", _caption(last, choices, blocks)])
    epochs = np.array([step.state.epoch for step in history], dtype=np.float64)
    for axes, name, short in zip(panels.flat, choices, short_names(choices, _TITLE_WIDTH), strict=False):
        stack = np.array([[step.state.probabilities[name][label] for step in history] for label in last[name]])
        is_block = name in blocks
        _draw_areas(axes, epochs, stack, [colors[is_block][label] for label in last[name]], list(last[name]))
        if begin is not None:
            _mark_begin(axes, begin)
        axes.set_title(short, fontsize=6.5, loc="left", pad=2.5, fontweight="bold" if is_block else "normal")
        axes.set_title(max(last[name], key=last[name].__getitem__), fontsize=6.5, loc="right", pad=2.5, color="#444444")
    num_columns = panels.shape[1]
    for place, axes in enumerate(panels.flat[: len(choices)]):
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True) if len(epochs) > 1 else FixedLocator([epochs[0]]))
        axes.tick_params(labelleft=place % num_columns == 0)
        if place + num_columns < len(choices):
            axes.tick_params(labelbottom=False)
        else:  # the last of its column
            axes.set_xlabel("epoch", fontsize=7, labelpad=1.5)
    return figure


def save_paths(path: Path, space: SearchSpace, history: Sequence[PathStep], *, title: str) -> None:
    """Writes `paths_figure` as PNG."""
    save(paths_figure(space, history, title=title), path)


def _panels(num_panels: int, handles: Sequence[Patch | Line2D], sentences: Sequence[str]) -> tuple[Figure, Any]:
    """A figure with a title of `sentences`, a legend of `handles`, and the panels, [rows, columns].

    Laid out in inches, and no axis shared: for 90 panels both would take many times as long to draw.
    """
    rows, columns = _grid(num_panels)
    width, height = _SMALL if num_panels > _MANY else _LARGE
    width = max(width, (6.4 - _LEFT - _RIGHT) / columns - _GAP_X)
    total = _LEFT + columns * (width + _GAP_X) - _GAP_X + _RIGHT
    num_lines = max(1, math.ceil(1.2 * len(handles) / total))
    title = "\n".join(balanced(sentence, int(13.5 * total)) for sentence in sentences)
    above, below = 0.3 + 0.19 * (title.count("\n") + 1), 0.45 + 0.19 * num_lines
    high = above + rows * (height + _GAP_Y) - _GAP_Y + below
    figure = new_figure(total, high)
    figure.set_layout_engine("none")
    panels = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": _LEFT / total,
            "right": 1 - _RIGHT / total,
            "top": 1 - above / high,
            "bottom": below / high,
            "wspace": _GAP_X / width,
            "hspace": _GAP_Y / height,
        },
    )
    for axes in panels.flat[num_panels:]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10, y=1 - 0.08 / high)
    figure.supylabel("probability", fontsize=9, x=0.08 / total, y=(below + (high - above - below) / 2) / high)
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=max(1, math.ceil(len(handles) / num_lines)),
        fontsize=8,
        frameon=False,
    )
    return figure, panels


def _grid(num_panels: int) -> tuple[int, int]:
    """Rows and columns, a little wider than high and with few places left over."""
    wide = math.ceil(math.sqrt(1.3 * num_panels))
    offered = [columns for columns in (wide, wide + 1, wide - 1) if columns > 0]
    columns = min(offered, key=lambda columns: -num_panels % columns, default=1)
    return max(1, math.ceil(num_panels / columns)), columns


def _draw_areas(
    axes: Axes, epochs: FloatArray, stack: FloatArray, colors: Sequence[str], labels: Sequence[str]
) -> None:
    """Areas of `stack` [num_candidates, num_epochs]; a single epoch is drawn as wide as one."""
    if len(epochs) == 1:
        epochs, stack = epochs[0] + np.array([-0.5, 0.5]), np.repeat(stack, 2, axis=1)
    edges = np.concatenate([np.zeros((1, len(epochs))), np.cumsum(stack, axis=0)])
    for label, color, low, high in zip(labels, colors, edges[:-1], edges[1:], strict=True):
        area = axes.fill_between(epochs, low, high, facecolor=color, edgecolor="none", linewidth=0.0, label=label)
        if label == ZERO:
            area.set(hatch=ZERO_HATCH, edgecolor=GREY)
    for edge in edges[1:-1]:
        axes.plot(epochs, edge, color="white", linewidth=0.35)
    axes.set(xlim=(epochs[0], epochs[-1]), ylim=(0.0, 1.0), yticks=[0.0, 1.0], yticklabels=["0", "1"])
    axes.tick_params(labelsize=6.5, length=2, pad=1.5)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)


def _mark_begin(axes: Axes, epoch: float) -> None:
    stroke = [withStroke(linewidth=2.0, foreground="white")]
    axes.axvline(epoch, color=BLACK, linewidth=0.9, linestyle=(0, (3, 1.5)), path_effects=stroke, label="_begin")


def _candidate_colors(
    probabilities: Mapping[str, Mapping[str, float]], blocks: Iterable[str]
) -> dict[bool, dict[str, str]]:
    """By whether the choice is a block's: a colour for each of the candidates that some choice has, in order."""
    operations = [label for name, choice in probabilities.items() if name in blocks for label in choice]
    widths = {
        label: float(label)
        for name, choice in probabilities.items()
        if name not in blocks and len(choice) > 1
        for label in choice
    }
    ordered = sorted(widths, key=widths.__getitem__, reverse=True)
    return {False: {label: to_hex(_WIDTHS(widths[label])) for label in ordered}, True: operation_colors(operations)}


def _legend(colors: Mapping[bool, Mapping[str, str]], has_begin: bool) -> list[Patch | Line2D]:
    handles: list[Patch | Line2D] = []
    widths = list(colors[False])
    if len(widths) > _MOST_WIDTHS:
        widths = [widths[place] for place in np.linspace(0, len(widths) - 1, _MOST_WIDTHS).round().astype(int)]
    for place, label in enumerate(widths):
        text = f"keep_ratio {label}" if place == 0 else label
        handles.append(Patch(facecolor=colors[False][label], label=text))
    for label, color in colors[True].items():
        is_zero = label == ZERO
        handles.append(
            Patch(
                facecolor=color,
                edgecolor=GREY if is_zero else "none",
                hatch=ZERO_HATCH if is_zero else None,
                label="zero (block skipped)" if is_zero else label,
            )
        )
    if has_begin:
        handles.append(
            Line2D([], [], color=BLACK, linewidth=1.0, linestyle=(0, (3, 1.5)), label="paths begin to learn")
        )
    return handles


def _caption(probabilities: Mapping[str, Mapping[str, float]], choices: Sequence[str], blocks: Iterable[str]) -> str:
    sentence = "the dense network's candidate at the bottom; in the corner the likeliest at the end"
    if set(choices) - set(blocks) and set(choices) & set(blocks):
        sentence += "; blocks in bold"
    num_single = len(probabilities) - len(choices)
    return (
        f"{sentence}; {counted(num_single, 'choice', 'choices')} of one candidate not shown" if num_single else sentence
    )
