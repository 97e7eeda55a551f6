"""What plots tell of operations: their colours, which layers they own, where in the network a choice stands."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.colors import to_hex, to_rgb

from compsearch.report.style import BLACK, GREEN
from compsearch.space import KEEP, ZERO, Block, Layer, Operation, Policy, SearchSpace

#: Inverted bottlenecks: k5_e6 has a 5×5 depthwise convolution between six times the channels.
_INVERTED = re.compile(r"k(\d+)_e(\d+)")
#: A hue per kernel size, the smallest first, from the colour of the largest expansion to that of the smallest. Okabe
#: and Ito's hues; six of them with three kernels and two expansions fall on six greys.
_HUES = (("#00B883", "#C2F2E0"), ("#A33F00", "#F5B97F"), ("#00406B", "#7DB4E0"), ("#7A3B66", "#DDA9C8"))
#: Operations by other names, in turn.
_OTHERS = ("#56B4E9", "#CC79A7", "#F0E442", "#5B5B5B", "#C9C9C9")
#: Doing nothing is white, hatched where it is drawn as an area.
ZERO_COLOR = "#FFFFFF"
KEEP_COLOR = GREEN
ZERO_HATCH = "/////"


def inverted_bottleneck(name: str) -> tuple[int, int] | None:
    """Kernel size and expansion of the operation of this name; None for any other kind of operation."""
    found = _INVERTED.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def kernel_colors(kernels: Iterable[int]) -> dict[int, str]:
    """A hue for each kernel size."""
    return {kernel: _HUES[rank % len(_HUES)][0].lower() for rank, kernel in enumerate(sorted(set(kernels)))}


def operation_colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each operation: hue by kernel size, lightness by expansion, white for doing nothing."""
    distinct = list(dict.fromkeys(names))
    known = {name: found for name in distinct if (found := inverted_bottleneck(name))}
    kernels = sorted({kernel for kernel, _ in known.values()})
    expansions = sorted({expansion for _, expansion in known.values()}, reverse=True)
    colors = {ZERO: ZERO_COLOR, KEEP: KEEP_COLOR}
    for name, (kernel, expansion) in known.items():
        strong, pale = _HUES[kernels.index(kernel) % len(_HUES)]
        share = expansions.index(expansion) / max(1, len(expansions) - 1)
        mixed = [(1 - share) * a + share * b for a, b in zip(to_rgb(strong), to_rgb(pale), strict=True)]
        colors[name] = to_hex((mixed[0], mixed[1], mixed[2]))
    others = [name for name in distinct if name not in colors]
    colors |= {name: _OTHERS[rank % len(_OTHERS)] for rank, name in enumerate(others)}
    return {name: colors[name] for name in distinct}


def ink_on(color: str) -> str:
    """Black or white, whichever stands out from `color`."""
    red, green, blue = to_rgb(color)
    return "#FFFFFF" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.45 else BLACK


def operation_layers(space: SearchSpace, operation: Operation) -> list[Layer]:
    """The layers that are there for `operation` alone, in forward order."""
    return [layer for layer in space.layers if owns(operation, layer.name)]


def owns(operation: Operation, layer: str) -> bool:
    """Whether the layer of this name goes with `operation`."""
    return any(layer == module or layer.startswith(f"{module}.") for module in operation.modules)


def forward_order(space: SearchSpace, choices: Iterable[str]) -> list[str]:
    """Names of groups and blocks in the order the network comes to them; a block before the groups within it.

    What the layers don't tell stays where it is, behind the others.
    """
    place = {layer.name: float(index) for index, layer in enumerate(space.layers)}
    ranks: dict[str, tuple[float, int]] = {}
    for group in space.groups:
        ranks[group.name] = (min((place.get(name, math.inf) for name in group.producers), default=math.inf), 1)
    for block in space.blocks:
        ranks[block.name] = (_first_layer(block, place), 0)
    return sorted(choices, key=lambda name: ranks.get(name, (math.inf, 2)))


def skipped_groups(space: SearchSpace, policy: Policy) -> frozenset[str]:
    """Names of the groups that only layers of operations which `policy` does not choose emit."""
    chosen = dict(policy.operations)
    gone = [
        operation
        for block in space.blocks
        for operation in block.operations
        if operation.modules and operation.name != chosen[block.name]
    ]
    return frozenset(
        group.name
        for group in space.groups
        if gone and all(any(owns(operation, name) for operation in gone) for name in group.producers)
    )


def _first_layer(block: Block, place: Mapping[str, float]) -> float:
    owned = (rank for name, rank in place.items() if any(owns(operation, name) for operation in block.operations))
    return min(owned, default=math.inf)


def short_names(names: Sequence[str], width: int) -> list[str]:
    """`names` of at most `width` characters.

    Where one is longer, the parts that all end with go, then those that all begin with; then it is cut at the front, as
    it is the end of a name that tells it from others.
    """
    if max(map(len, names), default=0) <= width:
        return list(names)
    parts = [name.split(".") for name in names]
    for end in (-1, 0):
        while (
            len(parts) > 1
            and max(len(".".join(each)) for each in parts) > width
            and all(len(each) > 1 and each[end] == parts[0][end] for each in parts)
            # A number at the end is read with what stands before it.
            and not (end == -1 and parts[0][end].isdigit())
        ):
            for each in parts:
                del each[end]
    short = [".".join(each) for each in parts]
    return [name if len(name) <= width else f"…{name[1 - width :]}" for name in short]
