"""genome.png: what the chosen network was derived from, layer by layer: LeGR's α and κ, say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from compsearch.report.style import BLUE, GREY, new_figure, save, tidy
from compsearch.trial import Genome


def genome_figure(genome: Genome, *, title: str) -> Figure:
    """One panel per kind of number, one bar per layer or group, in forward order.

    Numbers that are all positive are drawn on a logarithmic axis, as factors about 1; others about 0.
    """
    num_genes = max(len(genes) for genes in genome.values())
    figure = new_figure(max(6.4, 1.4 + 0.19 * num_genes), 1.6 + 1.8 * len(genome))
    panels = figure.subplots(len(genome), 1, sharex=True, squeeze=False)[:, 0]
    names: list[str] = []
    for axes, (name, genes) in zip(panels, genome.items(), strict=True):
        values = np.array(list(genes.values()))
        names = list(genes)
        tidy(axes)
        axes.grid(visible=False, axis="x")
        is_factor = bool((values > 0).all())
        if is_factor:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        neutral = 1.0 if is_factor else 0.0
        axes.bar(np.arange(len(values)), values - neutral, bottom=neutral, width=0.8, color=BLUE)
        axes.axhline(neutral, color=GREY, linewidth=0.8)
        axes.set_ylabel(SYMBOLS.get(name, name))
    panels[-1].set_xticks(np.arange(len(names)), names, rotation=90, fontsize=7)
    panels[-1].set_xlim(-0.7, len(names) - 0.3)
    panels[-1].set_xlabel("from input to output", color=GREY)
    panels[0].set_title(f"{title}: what was learned", fontsize=10)
    figure.align_ylabels()
    return figure


#: How numbers are written in the papers they come from.
SYMBOLS = {"alpha": "α (1: as it is)", "kappa": "κ (0: as it is)"}


def save_genome(path: Path, genome: Genome, *, title: str) -> None:
    """Writes `genome_figure` as PNG."""
    save(genome_figure(genome, title=title), path)
