"""latency.png: does latency fall with FLOPs? (LeGR's question: Chin et al., CVPR 2020, arXiv:1904.12368, figure 8.)"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compsearch.report.agreement import kendall_tau
from compsearch.report.captions import caption, counted, not_shown
from compsearch.report.style import BLACK, BLUE, GREY, MARKS, OTHER_MARK, new_figure, resource_label, save, tidy
from compsearch.report.timed import Timed
from compsearch.space import FloatArray

#: Trials within this share of the cost axis get a second, magnified panel.
_NARROW = 0.25
#: Trials that differ by less than this in cost_ratio say nothing about whether latency falls with it.
_MIN_RANGE = 0.05


def latency_figure(
    measured: Sequence[Timed],
    *,
    title: str,
    device: str,
    predicted: Sequence[tuple[float, float]] = (),
    networks: Mapping[str, Timed] | None = None,
) -> Figure:
    """Latency over that of the dense network against MACs over the dense network's: `measured` trials, `networks`.

    `predicted` are (cost_ratio, predicted latency ratio) of trials, drawn faint. `networks` are marked by their names:
    ``dense``, ``compressed``, ``fine-tuned``, ``uniform``. All of it on one `device`, which the title says in full.
    What is not finite is counted in the legend, not drawn. When latency did not fall as FLOPs did, the title says so.
    """
    trials = [trial for trial in measured if trial.is_finite]
    points = np.array(predicted, dtype=np.float64).reshape(-1, 2)
    shown = points[np.isfinite(points).all(axis=1)]
    marked = {name: network for name, network in (networks or {}).items() if network.is_finite}
    costs = np.array([*(trial.cost_ratio for trial in trials), *shown[:, 0]])
    is_narrow = _is_narrow(costs, marked)
    figure = new_figure(11.0 if is_narrow else 8.0, 5.6)
    panels = list(figure.subplots(1, 2 if is_narrow else 1, squeeze=False)[0])
    num_timed, num_predicted = counted(len(trials), "trial", "trials"), counted(len(shown), "trial", "trials")
    timed_label = f"{num_timed} timed, p10–p90{not_shown(len(measured) - len(trials), 'without a time')}"
    predicted_label = f"{num_predicted}, predicted{not_shown(len(points) - len(shown), 'without a prediction')}"
    for axes in panels:
        tidy(axes)
        if len(points):
            axes.scatter(*shown.T, s=7, color=GREY, alpha=0.5, linewidths=0, label=predicted_label, zorder=2)
        _draw_trials(axes, trials, timed_label)
        _draw_trend(axes, trials)
        _draw_networks(axes, marked)
        axes.set_xlabel(resource_label("macs"))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        label = "latency falling as FLOPs do"
        axes.axline((0.0, 0.0), slope=1.0, color=BLACK, linewidth=0.9, linestyle="--", label=label, zorder=1)
    highest = max([1.0, *(each.latency.p90 for each in [*trials, *marked.values()]), *shown[:, 1]])
    panels[0].set(xlim=(0.0, max([1.03, *costs])), ylim=(0.0, 1.05 * highest), ylabel=resource_label("latency_ms"))
    if is_narrow:
        _magnify(panels[1], trials, shown)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False
    )
    width = 150 if is_narrow else 105
    verdicts = (latency_verdict(marked), trend_verdict(trials))
    figure.suptitle(caption(title, device, *verdicts, width=width), fontsize=10)
    return figure


def save_latency(
    path: Path,
    measured: Sequence[Timed],
    *,
    title: str,
    device: str,
    predicted: Sequence[tuple[float, float]] = (),
    networks: Mapping[str, Timed] | None = None,
) -> None:
    """Writes `latency_figure` as PNG."""
    save(latency_figure(measured, title=title, device=device, predicted=predicted, networks=networks), path)


def latency_verdict(networks: Mapping[str, Timed]) -> str:
    """A sentence when the compressed network's latency did not fall as its FLOPs did, beyond its spread; else nothing.

    The fine-tuned network, of the same layers, stands in for a compressed one that was not timed.
    """
    name = next((name for name in ("compressed", "fine-tuned") if name in networks), None)
    if name is None or not networks[name].is_finite or networks[name].cost_ratio >= 1.0:
        return ""
    network = networks[name]
    found = f"{name} takes {network.latency:.2f} of dense at {network.cost_ratio:.2f} of the FLOPs"
    if network.latency.p90 >= 1.0:
        return f"latency did not fall beyond its spread: {found}"
    return f"latency fell less than FLOPs did: {found}" if network.latency.p10 > network.cost_ratio else ""


def trend_verdict(trials: Sequence[Timed]) -> str:
    """A sentence when trials that cost clearly different FLOPs are not faster for costing less; else nothing."""
    costs, latencies = _medians(trials)
    if len(costs) < 3 or np.ptp(costs) < _MIN_RANGE or not kendall_tau(costs, latencies) <= 0.0:
        return ""
    return f"among the {len(costs)} timed trials, latency did not fall with FLOPs"


def trend(trials: Sequence[Timed]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line through the medians; NaN when all cost the same, or none is there.

    Trials that are not finite don't count.
    """
    costs, latencies = _medians(trials)
    if len(costs) < 2 or np.ptp(costs) < 1e-9:
        return math.nan, math.nan
    slope, intercept = np.polyfit(costs, latencies, 1)
    return float(slope), float(intercept)


def _medians(trials: Sequence[Timed]) -> tuple[FloatArray, FloatArray]:
    finite = [trial for trial in trials if trial.is_finite]
    costs = np.array([trial.cost_ratio for trial in finite], dtype=np.float64)
    return costs, np.array([trial.latency.median for trial in finite], dtype=np.float64)


def _draw_trials(axes: Axes, trials: Sequence[Timed], label: str) -> None:
    costs, latencies = _medians(trials)
    tau = kendall_tau(costs, latencies)
    axes.scatter(
        costs,
        latencies,
        s=20,
        color=BLUE,
        alpha=0.8,
        linewidths=0,
        zorder=3,
        label=label if math.isnan(tau) else f"{label}: Kendall τ {tau:.2f}",
    )
    bars = np.array([(trial.latency.below, trial.latency.above) for trial in trials]).reshape(-1, 2).T
    axes.errorbar(costs, latencies, yerr=bars, fmt="none", ecolor=BLUE, elinewidth=0.8, alpha=0.6, zorder=3)


def _draw_trend(axes: Axes, trials: Sequence[Timed]) -> None:
    slope, intercept = trend(trials)
    if math.isnan(slope):
        return
    costs, _ = _medians(trials)
    ends = np.array([costs.min(), costs.max()])
    label = f"least squares through the timed trials: slope {slope:.2f}"
    axes.plot(ends, slope * ends + intercept, color=BLACK, linewidth=1.6, label=label, zorder=3.5)


def _draw_networks(axes: Axes, networks: Mapping[str, Timed]) -> None:
    for name, network in networks.items():
        mark = MARKS.get(name, OTHER_MARK)
        ratio = network.latency
        axes.errorbar(
            [network.cost_ratio],
            [ratio.median],
            yerr=[[ratio.below], [ratio.above]],
            fmt="none",
            ecolor=BLACK,
            elinewidth=1.2,
            capsize=3,
            zorder=4,
        )
        axes.scatter(
            [network.cost_ratio],
            [ratio.median],
            marker=mark.marker,
            # Of the same layers as compressed, and so on its mark: small enough for both to be seen.
            s=0.4 * mark.size if name == "fine-tuned" else mark.size,
            color=mark.color,
            edgecolors="white",
            linewidths=0.3 if name == "fine-tuned" else 0.8,
            zorder=6 if name == "fine-tuned" else 5,
            label=f"{name}: {ratio:.2f} at {network.cost_ratio:.2f} of the FLOPs",
        )


def _is_narrow(costs: FloatArray, networks: Mapping[str, Timed]) -> bool:
    if not len(costs):
        return False
    everything = np.array([*costs, *(network.cost_ratio for network in networks.values())])
    return bool(np.ptp(costs) < _NARROW * max(np.ptp(everything), 1e-12))


def _magnify(axes: Axes, trials: Sequence[Timed], predicted: FloatArray) -> None:
    costs = np.array([*(trial.cost_ratio for trial in trials), *predicted[:, 0]])
    latencies = [*(trial.latency.p10 for trial in trials), *(trial.latency.p90 for trial in trials), *predicted[:, 1]]
    margin = max(0.15 * float(np.ptp(costs)), 0.002)
    axes.set_xlim(costs.min() - margin, costs.max() + margin)
    margin = max(0.08 * float(np.ptp(latencies)), 0.002)
    axes.set_ylim(min(latencies) - margin, max(latencies) + margin)
    axes.set_title("the trials, magnified", fontsize=9)
