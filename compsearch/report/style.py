"""How every plot looks: colours that colour-blind readers and grey printers tell apart, and how one is saved."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from compsearch import atomic

DPI = 150

#: Okabe and Ito's colours (Color Universal Design, 2008), of clearly different lightness where they meet in a plot.
BLACK = "#000000"
BLUE = "#0072B2"
ORANGE = "#E69F00"
VERMILION = "#D55E00"
GREEN = "#009E73"
GREY = "#8C8C8C"

#: What a resource is called wherever people read it.
RESOURCE_LABELS: Mapping[str, str] = MappingProxyType(
    {
        "macs": "FLOPs (MACs)",
        "params": "parameters",
        "latency_ms": "latency",
        "peak_activation_bytes": "peak activation memory",
        "energy_mj": "energy (analytic)",
    }
)
#: What its numbers are of, where they are not plain counts.
RESOURCE_UNITS: Mapping[str, str] = MappingProxyType(
    {"latency_ms": "ms", "peak_activation_bytes": "B", "energy_mj": "mJ"}
)


@dataclass(frozen=True)
class Mark:
    """How a network of a certain role is drawn: the shape alone tells it, without colour."""

    marker: str
    color: str
    size: float


MARKS: Mapping[str, Mark] = MappingProxyType(
    {
        "dense": Mark("s", BLACK, 60),
        "compressed": Mark("*", VERMILION, 190),
        "fine-tuned": Mark("P", GREEN, 110),
        "uniform": Mark("D", ORANGE, 60),
        "random": Mark("v", ORANGE, 70),
    }
)
OTHER_MARK = Mark("X", GREY, 80)
#: Other searchers' networks, in the order they come.
OTHER_MARKS = (
    Mark("o", BLUE, 70),
    Mark("^", GREEN, 70),
    Mark("X", GREY, 80),
    Mark("v", BLACK, 70),
    Mark("p", ORANGE, 80),
)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that belongs to nobody but the caller: no pyplot, no global state."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """A light grid behind the data, and no box around it."""
    axes.set_axisbelow(True)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def resource_label(resource: str) -> str:
    """The axis of a cost_ratio."""
    return f"cost_ratio: {RESOURCE_LABELS.get(resource, resource)} / dense"


def save(figure: Figure, path: Path) -> None:
    """Writes `figure` as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    atomic.write_bytes(path, buffer.getvalue())


def save_both(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Writes `figure` as PNG at `path`, which must end so, and as SVG beside it; returns both paths.

    The same figure gives the same bytes: no dates, and the SVG's ids are of the drawing alone.
    """
    if path.suffix != ".png":
        raise ValueError(f"a figure's path must end in .png, its SVG goes beside it, but got {path}")
    vector = path.with_suffix(".svg")
    buffer = io.BytesIO()
    # Letters as outlines: the page looks the same where the fonts are others.
    with matplotlib.rc_context({"svg.hashsalt": "compsearch", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    save(figure, path)
    atomic.write_bytes(vector, buffer.getvalue())
    return path, vector
