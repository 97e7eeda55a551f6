"""Every static plot that a comparison has the data for, by name, with its sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from compsearch.comparison.anytime import HYPERVOLUME
from compsearch.comparison.anytime_plot import anytime_figure, anytime_sentence, hypervolume_sentence
from compsearch.comparison.attainment_plot import attainment_figure, attainment_sentence
from compsearch.comparison.budget_plot import budget_figure, budget_sentence
from compsearch.comparison.comparison import Comparison
from compsearch.comparison.cost_plot import cost_figure, cost_sentence, has_search_costs
from compsearch.comparison.keep_ratio_plot import keep_ratio_figure, keep_ratio_sentence
from compsearch.comparison.pareto_plots import pareto_figure, pareto_macs_figure, pareto_sentence
from compsearch.comparison.seeds import compressed_networks
from compsearch.report.style import save_both


@dataclass(frozen=True)
class Plot:
    """A plot by its `name`, which its files have too; `sentence` is for its caption, `draw` makes the figure."""

    name: str
    sentence: str
    draw: Callable[[], Figure]


def plots(comparison: Comparison, facet: str) -> list[Plot]:
    """The plots that there is something to show in, what matters most first."""
    networks = compressed_networks(comparison.networks[comparison.networks["facet"] == facet])
    trials = comparison.trials[comparison.trials["facet"] == facet]
    found = []
    if len(networks):
        found += [
            Plot("pareto-macs", pareto_sentence(), partial(pareto_macs_figure, comparison, facet)),
            Plot("budgets", budget_sentence(comparison, facet), partial(budget_figure, comparison, facet)),
            Plot("pareto", pareto_sentence(), partial(pareto_figure, comparison, facet)),
        ]
    for stage in ("before", "after"):
        if (networks["stage"] == stage).any():
            draw = partial(attainment_figure, comparison, facet, stage=stage)
            found.append(Plot(f"attainment-{stage}", attainment_sentence(), draw))
    if has_search_costs(comparison, facet):
        found.append(Plot("cost", cost_sentence(), partial(cost_figure, comparison, facet)))
    if trials["accuracy"].notna().any():
        draw = partial(anytime_figure, comparison, facet, quantity=HYPERVOLUME)
        found += [
            Plot("anytime", anytime_sentence(), partial(anytime_figure, comparison, facet)),
            Plot("anytime-hypervolume", hypervolume_sentence(), draw),
        ]
    if (comparison.kept["facet"] == facet).any():
        found.append(Plot("keep-ratio", keep_ratio_sentence(), partial(keep_ratio_figure, comparison, facet)))
    return found


def save_plots(comparison: Comparison, facet: str, folder: Path) -> list[tuple[Plot, tuple[Path, Path]]]:
    """Writes `plots` as PNG and SVG into `folder`, which must exist; each with the paths of both."""
    return [(plot, save_both(plot.draw(), folder / f"{plot.name}.png")) for plot in plots(comparison, facet)]
