"""family.png: one search, a curve. Test accuracy of every member against its cost, beside the baselines at each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from compsearch.report.style import BLACK, GREY, MARKS, OTHER_MARKS, Mark, new_figure, resource_label, save, tidy
from compsearch.summary import NetworkRow, Summary


def family_figure(summary: Summary, *, resource: str, title: str, others: Sequence[Summary] = ()) -> Figure:
    """Accuracy on the test split against the achieved cost_ratio of `resource`: a line per kind of network.

    Before fine-tuning on the left, after it on the right where the members were fine-tuned. `others` are runs of other
    searchers on the same network. Where uniform is at least as accurate as the member of its budget, the title says so.
    """
    is_tuned = any(member.network("fine-tuned") for member in summary.family)
    figure = new_figure(11.0 if is_tuned else 7.2, 4.8)
    axes = list(figure.subplots(1, 2 if is_tuned else 1, squeeze=False, sharey=True)[0])
    _draw(axes[0], summary, "compressed", resource, others)
    axes[0].set_ylabel("accuracy on the test split")
    axes[0].set_title(f"before fine-tuning, recovered by {summary.recovery}", fontsize=9)
    if is_tuned:
        _draw(axes[1], summary, "fine-tuned", resource, others)
        axes[1].set_title("fine-tuned (uniform: before)", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle("\n".join(filter(None, [title, family_verdict(summary)])), fontsize=10)
    return figure


def save_family(path: Path, summary: Summary, *, resource: str, title: str, others: Sequence[Summary] = ()) -> None:
    """Writes `family_figure` as PNG."""
    save(family_figure(summary, resource=resource, title=title, others=others), path)


def family_verdict(summary: Summary) -> str:
    """A sentence when uniform did at least as well as the member at some budget, before fine-tuning; else nothing."""
    lost = []
    for member in summary.family:
        own, uniform = member.network("compressed"), member.network("uniform")
        if own and uniform and None not in (own.accuracy_test, uniform.accuracy_test):
            assert own.accuracy_test is not None
            assert uniform.accuracy_test is not None
            if uniform.accuracy_test >= own.accuracy_test:
                lost.append(f"{member.cost_ratio:g}")
    return f"uniform did as well or better at {', '.join(lost)}, before fine-tuning" if lost else ""


def _draw(axes: Axes, summary: Summary, name: str, resource: str, others: Sequence[Summary]) -> None:
    tidy(axes)
    dense = summary.dense
    _line(axes, [dense], dense, resource, MARKS["dense"], "dense", line=False)
    if dense.accuracy_test is not None:
        axes.axhline(dense.accuracy_test, color=GREY, linewidth=0.6, linestyle=":", zorder=1)
    own = [row for member in summary.family if (row := member.network(name))]
    # One mark in both panels, as there is one legend; first of those that meet, as it is the largest.
    _line(axes, own, dense, resource, MARKS["compressed"], summary.searcher)
    uniform = [row for member in summary.family if (row := member.network("uniform"))]
    _line(axes, uniform, dense, resource, MARKS["uniform"], "uniform", style="--")
    # Runs of uniform add nothing: it is drawn at every budget.
    searchers = list(dict.fromkeys(other.searcher for other in others if other.searcher.lower() != "uniform"))
    for searcher, mark in zip(searchers, OTHER_MARKS * len(searchers), strict=False):
        rows = []
        for other in others:
            if other.searcher == searcher:
                found = [member.network(name) for member in other.family] or [other.network(name)]
                rows += [row for row in found if row]
        _line(axes, rows, dense, resource, mark, f"{searcher}, {_runs(searcher, others)}", line=False)
    axes.set_xlim(0.0, 1.03)
    axes.set_xlabel(resource_label(resource))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _runs(searcher: str, others: Sequence[Summary]) -> str:
    num = sum(other.searcher == searcher for other in others)
    return f"{num} run{'s' if num > 1 else ''}"


def _line(
    axes: Axes,
    rows: Sequence[NetworkRow],
    dense: NetworkRow,
    resource: str,
    mark: Mark,
    label: str,
    *,
    line: bool = True,
    style: str = "-",
) -> None:
    points = sorted(
        (ratio, row.accuracy_test)
        for row in rows
        if row.accuracy_test is not None and (ratio := row.ratios(dense).get(resource)) is not None
    )
    if not points:
        return
    x, y = zip(*points, strict=True)
    if line:
        axes.plot(x, y, color=mark.color, linewidth=1.2, linestyle=style, zorder=3)
    axes.scatter(
        x,
        y,
        marker=mark.marker,
        s=0.6 * mark.size,
        color=mark.color,
        edgecolors=BLACK,
        linewidths=0.4,
        zorder=4,
        label=label,
    )
