"""How each series looks wherever it is drawn: one colour, shape and dash per searcher, in static and interactive plots.

Colours are Okabe and Ito's (Color Universal Design, 2008). A series is told by its shape and dash alone, so that it
survives a grey printer; those of one searcher share its hue. matplotlib and plotly name the same things differently:
`Look` gives both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from compsearch.comparison.comparison import Comparison
from compsearch.report.style import BLACK, BLUE, GREEN, ORANGE, VERMILION

#: What plotly calls matplotlib's markers.
PLOTLY_SYMBOLS: Mapping[str, str] = MappingProxyType(
    {
        "o": "circle",
        "^": "triangle-up",
        "P": "cross",
        "X": "x",
        "v": "triangle-down",
        "*": "star",
        "D": "diamond",
        "s": "square",
        "<": "triangle-left",
        ">": "triangle-right",
        "p": "pentagon",
        "h": "hexagon2",
        "d": "diamond-tall",
    }
)


@dataclass(frozen=True)
class Look:
    """How a series is drawn, and its `label` for people.

    `color` is ``#rrggbb``. `marker` is matplotlib's, `symbol` the same shape in plotly. `dash` are lengths on and off
    by turns in line widths, () for a whole line; `linestyle` and `plotly_dash` say it in either's words. `size` makes
    shapes of equal extent look equally large: a factor on the marker's diameter.
    """

    label: str
    color: str
    marker: str
    dash: tuple[float, ...] = ()
    size: float = 1.0

    @property
    def symbol(self) -> str:
        return PLOTLY_SYMBOLS[self.marker]

    @property
    def linestyle(self) -> Literal["-"] | tuple[float, tuple[float, ...]]:
        return (0.0, self.dash) if self.dash else "-"

    @property
    def plotly_dash(self) -> str:
        # plotly counts in pixels, and its lines are about two wide.
        return ",".join(f"{2 * length:g}px" for length in self.dash) or "solid"


#: By the searcher's word, in the order of every legend: what learns, what samples, what needs no search, the whole.
SEARCHER_LOOKS: Mapping[str, Look] = MappingProxyType(
    {
        "amc": Look("AMC", VERMILION, "o"),
        "legr": Look("LeGR", BLUE, "^", (6.0, 1.5), 1.1),
        "proxylessnas": Look("ProxylessNAS", GREEN, "P", (6.0, 1.5, 1.0, 1.5), 1.1),
        "evolution": Look("evolution", "#B0518F", "X", (3.0, 1.2), 1.1),
        "random": Look("random", ORANGE, "v", (1.0, 1.2), 1.1),
        "global_magnitude": Look("global magnitude", "#56B4E9", "*", (3.0, 1.2, 1.0, 1.2, 1.0, 1.2), 1.45),
        "uniform": Look("uniform", "#4D4D4D", "D", (4.0, 2.5), 0.85),
        "dense": Look("dense", BLACK, "s", (1.0, 2.5)),
    }
)
#: Of searchers that are not in the table, in the order of their names.
_OTHER_COLORS = ("#882255", "#999933", "#44AA99", "#7F5539", "#332288", "#C7517A")
_OTHER_MARKERS = ("p", "h", "<", ">", "d", "s")
#: Of further series of searchers; five shapes and four dashes, so that no pair comes again before 20.
_VARIANT_MARKERS = ("<", "p", "d", ">", "s")
_VARIANT_DASHES = ((4.0, 1.5), (1.0, 1.2), (6.0, 1.5, 1.0, 1.5), (2.0, 1.0))
#: Towards white (positive) or black (negative), by this share.
_VARIANT_SHADES = (-0.40, 0.35, -0.20, 0.20, -0.60)


def looks(comparison: Comparison) -> dict[str, Look]:
    """A look per series of `comparison`, all its facets together, in the order of legends."""
    pairs = [(run.series, run.searcher) for run in comparison.runs]
    pairs += list(comparison.networks[["series", "searcher"]].itertuples(index=False, name=None))
    pairs += list(comparison.trials[["series", "searcher"]].itertuples(index=False, name=None))
    return looks_of(pairs)


def looks_of(pairs: Iterable[tuple[str, str]]) -> dict[str, Look]:
    """A look per series of (series, searcher) `pairs`, which may come again, in the order of legends.

    The same set of series gets the same looks, in whatever order it comes. The series called just as its searcher has
    the searcher's own look; others have its hue in another shade, with a marker and a dash of their own.
    """
    searchers: dict[str, list[str]] = {}
    for series, searcher in sorted(set(pairs), key=lambda pair: _natural(pair[0])):
        searchers.setdefault(searcher, []).append(series)
    known = [searcher for searcher in SEARCHER_LOOKS if searcher in searchers]
    unknown = sorted(set(searchers) - set(known))
    order = [each for each in known if each != "dense"] + unknown + [each for each in known if each == "dense"]
    found: dict[str, Look] = {}
    num_variants = 0
    for searcher in order:
        base = SEARCHER_LOOKS.get(searcher) or _other(searcher, unknown.index(searcher))
        own = sorted(searchers[searcher], key=lambda series: (series != searcher, _natural(series)))
        # One series only is the searcher's, whatever it is called.
        if own[0] == searcher or len(own) == 1:
            plain = own.pop(0)
            found[plain] = replace(base, label=_label(base, plain, searcher))
        for index, series in enumerate(own):
            found[series] = replace(
                base,
                label=_label(base, series, searcher),
                color=_shaded(base.color, _VARIANT_SHADES[index % len(_VARIANT_SHADES)]),
                # Counted through, so that first variants of two searchers don't look the same in grey.
                marker=_VARIANT_MARKERS[num_variants % len(_VARIANT_MARKERS)],
                dash=_VARIANT_DASHES[num_variants % len(_VARIANT_DASHES)],
                size=1.0,
            )
            num_variants += 1
    return found


def _other(searcher: str, index: int) -> Look:
    color, marker = _OTHER_COLORS[index % len(_OTHER_COLORS)], _OTHER_MARKERS[index % len(_OTHER_MARKERS)]
    return Look(searcher.replace("_", " "), color, marker, _VARIANT_DASHES[index % len(_VARIANT_DASHES)])


def _label(base: Look, series: str, searcher: str) -> str:
    return base.label + series.removeprefix(searcher) if series.startswith(searcher) else series


def _shaded(color: str, share: float) -> str:
    """`color` moved by `share` of the way to white, or to black where it is negative."""
    channels = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
    target = 255 if share > 0 else 0
    return "#" + "".join(f"{round(channel + abs(share) * (target - channel)):02X}" for channel in channels)


def _natural(text: str) -> tuple[tuple[bool, int, str], ...]:
    """Sorts ``tau 10`` after ``tau 2``."""
    parts = re.findall(r"\d+|\D+", text)
    return tuple((not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts)
