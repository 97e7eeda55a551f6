"""predictor.png: a latency predictor's check, the latencies it predicts for policies against those measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compsearch.report.agreement import MAX_MAPE, kendall_tau, mape, prediction_verdict
from compsearch.report.captions import balanced, caption, counted, not_shown
from compsearch.report.style import BLACK, BLUE, GREY, ORANGE, VERMILION, new_figure, save, tidy
from compsearch.report.timed import Spread


@dataclass(frozen=True)
class CheckedPolicy:
    """What was predicted for one policy and what was measured, in milliseconds.

    `is_fitted` when the predictor was fitted to this measurement: it then can't tell whether the predictor is right.
    """

    predicted_ms: float
    measured_ms: Spread
    is_fitted: bool = False

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.predicted_ms) and self.measured_ms.is_finite


def predictor_figure(policies: Sequence[CheckedPolicy], *, title: str, device: str) -> Figure:
    """Predicted against measured latency of `policies` on `device`, with the line they should lie on and ±5% about it.

    MAPE and Kendall's τ in the legend are of the policies held out, those fitted to are drawn otherwise. Policies that
    are not finite are counted in the legend, not drawn. When the prediction is off, or was not checked, a loud line
    under the title says so.
    """
    figure = new_figure(6.6, 7.0)
    axes = figure.subplots()
    tidy(axes)
    shown = [policy for policy in policies if policy.is_finite]
    dropped = not_shown(len(policies) - len(shown), "without a time")
    held_out = [policy for policy in shown if not policy.is_fitted]
    fitted = [policy for policy in shown if policy.is_fitted]
    _draw(axes, held_out, f"{_named(held_out, 'held out')}{dropped}", marker="o", color=BLUE, zorder=4)
    if fitted:
        _draw(axes, fitted, _named(fitted, "fitted to"), marker="x", color=ORANGE, zorder=3)
    times = [time for each in shown for time in (each.predicted_ms, each.measured_ms.p10, each.measured_ms.p90)]
    low, high = (min(times), max(times)) if times else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.05 * high
    ends = np.array([max(0.0, low - margin), high + margin])
    axes.plot(ends, ends, color=BLACK, linewidth=0.9, label="as measured", zorder=2)
    band = axes.fill_between(ends, (1.0 - MAX_MAPE) * ends, (1.0 + MAX_MAPE) * ends, color=GREY, alpha=0.2, zorder=1)
    band.set_label(f"within {MAX_MAPE:.0%} of the measured latency")
    band.set_linewidth(0.0)
    axes.set(xlim=ends, ylim=ends, xlabel="measured latency (ms), p10–p90", ylabel="predicted latency (ms)")
    axes.set_aspect("equal")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=1, fontsize=8, frameon=False)
    figure.suptitle(caption(title, device, width=82), fontsize=10)
    axes.set_title(balanced(predictor_verdict(policies), 76), fontsize=10, color=VERMILION, fontweight="bold")
    return figure


def save_predictor(path: Path, policies: Sequence[CheckedPolicy], *, title: str, device: str) -> None:
    """Writes `predictor_figure` as PNG."""
    save(predictor_figure(policies, title=title, device=device), path)


def predictor_verdict(policies: Sequence[CheckedPolicy]) -> str:
    """A sentence when the prediction is off on the policies held out, or none was held out; else nothing."""
    held_out = [policy for policy in policies if policy.is_finite and not policy.is_fitted]
    if not held_out:
        return "prediction was not checked: no policy was held out and timed"
    return prediction_verdict(*agreement(held_out))


def agreement(policies: Sequence[CheckedPolicy]) -> tuple[float, float]:
    """`mape` and `kendall_tau` of what was predicted for `policies`, all finite, and the medians measured."""
    predicted = [policy.predicted_ms for policy in policies]
    measured = [policy.measured_ms.median for policy in policies]
    return mape(predicted, measured), kendall_tau(predicted, measured)


def _named(policies: Sequence[CheckedPolicy], role: str) -> str:
    error, tau = agreement(policies)
    number = f"{counted(len(policies), 'policy', 'policies')} {role}"
    return number if math.isnan(error) else f"{number}: MAPE {error:.2%}, Kendall τ {tau:.3f}"


def _draw(axes: Axes, policies: Sequence[CheckedPolicy], label: str, *, marker: str, color: str, zorder: float) -> None:
    measured = [policy.measured_ms.median for policy in policies]
    predicted = [policy.predicted_ms for policy in policies]
    axes.scatter(measured, predicted, s=22, marker=marker, color=color, linewidths=1.0, label=label, zorder=zorder)
    bars = np.array([(policy.measured_ms.below, policy.measured_ms.above) for policy in policies]).reshape(-1, 2).T
    axes.errorbar(measured, predicted, xerr=bars, fmt="none", ecolor=color, elinewidth=0.8, alpha=0.6, zorder=zorder)
