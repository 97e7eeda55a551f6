"""derived.png: the network a search over operations arrived at, as ProxylessNAS draws it (arXiv:1812.00332, figure 4).

From input to classifier one box per block: its colour is the kernel size, its height the expansion. Blocks that are
skipped are dashed outlines.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from compsearch.report.operations import (
    ink_on,
    inverted_bottleneck,
    kernel_colors,
    operation_layers,
    owns,
    short_names,
)
from compsearch.report.style import BLACK, GREY, new_figure, save
from compsearch.space import ZERO, Block, Layer, Policy, SearchSpace

_FIXED_COLOR = "#DADADA"
_BOX_WIDTH = 0.74
#: Height of what is not an inverted bottleneck, in that of the largest expansion.
_FIXED_HEIGHT = 0.5
#: Labels of lower boxes stand above them.
_LOWEST_WITH_LABEL = 0.3


@dataclass(frozen=True)
class _Box:
    """One box. `shape` is what comes out, channels, height and width; None where the layers don't tell.

    `kernel` and `expansion` are None for what is not an inverted bottleneck, `is_skipped` for a block that is not done.
    """

    name: str
    label: str
    shape: tuple[int, int, int] | None
    kernel: int | None = None
    expansion: int | None = None
    is_skipped: bool = False


def is_drawable(space: SearchSpace) -> bool:
    """Whether any block of `space` chooses among inverted bottlenecks, such as k5_e6."""
    return any(inverted_bottleneck(operation.name) for block in space.blocks for operation in block.operations)


def derived_figure(space: SearchSpace, policy: Policy, *, title: str) -> Figure:
    """The network of `policy`: boxes in forward order, with channels and size of what a stage puts out above.

    Layers that are there whatever is chosen are drawn as well. Raises ValueError when `policy` does not belong to
    `space`, or no block of it chooses among inverted bottlenecks.
    """
    space.check(policy)
    if not is_drawable(space):
        raise ValueError(
            "a block must choose among inverted bottlenecks such as 'k5_e6', but no block of this space does; "
            "policy.png shows the others"
        )
    boxes = _boxes(space, policy)
    offered = [
        found
        for block in space.blocks
        for operation in block.operations
        if (found := inverted_bottleneck(operation.name))
    ]
    kernels = sorted({kernel for kernel, _ in offered} | {box.kernel for box in boxes if box.kernel})
    colors = kernel_colors(kernels)
    largest = max(max(expansion for _, expansion in offered), *(box.expansion or 1 for box in boxes))
    smallest = min(expansion for _, expansion in offered)
    figure = new_figure(max(6.4, 1.6 + 0.5 * len(boxes)), 4.9)
    axes = figure.subplots()
    axes.plot([-0.85, len(boxes) - 0.3], [0.0, 0.0], color=GREY, linewidth=1.4, zorder=1)
    for place, box in enumerate(boxes):
        height = (smallest if box.is_skipped else box.expansion or _FIXED_HEIGHT * largest) / largest
        _draw_box(axes, place, box, height, _FIXED_COLOR if box.kernel is None else colors[box.kernel])
    _draw_stages(axes, boxes)
    first = space.layers[0]
    text = f"input\n{first.in_channels}\n{first.height}×{first.width}"
    axes.text(-0.95, 0.0, text, ha="right", va="center", fontsize=7, linespacing=1.3)
    blocks = [block.name for block in space.blocks]
    short = dict(zip(blocks, short_names(blocks, 12), strict=True))
    names = [short.get(box.name) or short_names([box.name], 20)[0] for box in boxes]
    axes.set_xticks(range(len(boxes)), names, rotation=90, fontsize=7)
    axes.set(xlim=(-1.0, len(boxes)), ylim=(-0.6, 0.92), yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="x", length=0, colors="#444444")
    num_skipped = sum(box.is_skipped for box in boxes)
    skipped = f"{len(space.blocks) - num_skipped} of {len(space.blocks)} searched blocks stay"
    axes.set_title(f"{title}\nthe network found, from input to classifier: {skipped}", fontsize=10)
    handles: list[Patch | Line2D] = [
        Patch(color=colors[kernel], label=f"kernel {kernel}×{kernel}") for kernel in kernels
    ]
    handles.append(Patch(facecolor="none", edgecolor=BLACK, linestyle="--", label="skipped"))
    handles.append(Patch(color=_FIXED_COLOR, label="other layers, not searched"))
    handles.append(Line2D([], [], linestyle="none", label=f"height: expansion, MB{largest} the highest"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def save_derived(path: Path, space: SearchSpace, policy: Policy, *, title: str) -> None:
    """Writes `derived_figure` as PNG."""
    save(derived_figure(space, policy, title=title), path)


def _draw_box(axes: Axes, place: int, box: _Box, height: float, color: str) -> None:
    corner = (place - _BOX_WIDTH / 2, -height / 2)
    patch = Rectangle(corner, _BOX_WIDTH, height, facecolor=color, edgecolor=BLACK, linewidth=0.7, zorder=2)
    patch.set_gid(box.name)
    if box.is_skipped:
        patch.set(facecolor="none", linestyle="--", linewidth=0.9)
    axes.add_patch(patch)
    ink = "#444444" if box.is_skipped else ink_on(color)
    # The line of what is passed on runs through a skipped block and not through its word.
    y = height / 4 if box.is_skipped else 0.0
    is_low = height < _LOWEST_WITH_LABEL
    if is_low:
        y, ink = height / 2 + 0.02, BLACK
    align = "bottom" if is_low else "center"
    axes.text(place, y, box.label, rotation=90, ha="center", va=align, fontsize=7, color=ink, zorder=3)


def _draw_stages(axes: Axes, boxes: Sequence[_Box]) -> None:
    """A line where channels or size change, and both above each stretch in which they don't."""
    starts = [place for place, box in enumerate(boxes) if place == 0 or box.shape != boxes[place - 1].shape]
    for start, end in zip(starts, [*starts[1:], len(boxes)], strict=True):
        if start:
            axes.axvline(start - 0.5, ymin=0.03, ymax=0.96, color=GREY, linewidth=0.7, linestyle=":", zorder=0)
        shape = boxes[start].shape
        if shape is None:
            continue
        channels, height, width = shape
        text = f"{channels}\n{height}×{width}" if height * width > 1 else f"{channels}"
        axes.text((start + end - 1) / 2, 0.73, text, ha="center", va="center", fontsize=7, linespacing=1.3)
    axes.text(-0.95, 0.73, "channels\nsize", ha="right", va="center", fontsize=7, color="#444444", linespacing=1.3)


def _boxes(space: SearchSpace, policy: Policy) -> list[_Box]:
    """What the network consists of, in forward order."""
    chosen = dict(policy.operations)
    boxes: list[_Box] = []
    fixed: list[Layer] = []
    drawn: set[str] = set()
    for layer in space.layers:
        owner = _owner(space, layer)
        if owner is None:
            fixed.append(layer)
        elif owner.name not in drawn:
            boxes += _fixed_boxes(fixed)
            fixed = []
            drawn.add(owner.name)
            boxes.append(_block_box(space, owner, chosen[owner.name]))
    return boxes + _fixed_boxes(fixed)


def _owner(space: SearchSpace, layer: Layer) -> Block | None:
    for block in space.blocks:
        if any(owns(operation, layer.name) for operation in block.operations):
            return block
    return None


def _block_box(space: SearchSpace, block: Block, chosen: str) -> _Box:
    owned = [layers for operation in block.operations if (layers := operation_layers(space, operation))]
    shape = _shape_after(owned[0]) if owned else None
    if chosen == ZERO:
        return _Box(block.name, "skip", shape, is_skipped=True)
    found = inverted_bottleneck(chosen)
    if found is None:
        return _Box(block.name, chosen, shape)
    kernel, expansion = found
    return _Box(block.name, _label(kernel, expansion), shape, kernel, expansion)


def _fixed_boxes(layers: Sequence[Layer]) -> list[_Box]:
    """A box per layer; a depthwise convolution with the 1×1 convolutions around it is one inverted bottleneck."""
    boxes: list[_Box] = []
    rest = list(layers)
    while rest:
        size = _bottleneck_length(rest)
        part, rest = rest[:size], rest[size:]
        middle = next((layer for layer in part if layer.kind == "depthwise"), None)
        shape = _shape_after(part)
        if middle is None:
            kind = "FC" if part[0].kind == "linear" else f"Conv {part[0].kernel_size}×{part[0].kernel_size}"
            boxes.append(_Box(part[0].name, kind, shape))
        else:
            expansion = max(1, round(middle.in_channels / part[0].in_channels))
            boxes.append(
                _Box(
                    _common_module([layer.name for layer in part]),
                    _label(middle.kernel_size, expansion),
                    shape,
                    middle.kernel_size,
                    expansion,
                )
            )
    return boxes


def _bottleneck_length(layers: Sequence[Layer]) -> int:
    """How many of the first `layers` make an inverted bottleneck; 1 when they don't."""
    kinds = ["pointwise" if layer.kind == "conv" and layer.kernel_size == 1 else layer.kind for layer in layers[:3]]
    if kinds == ["pointwise", "depthwise", "pointwise"]:
        return 3
    return 2 if kinds[:2] == ["depthwise", "pointwise"] else 1


def _common_module(layers: Sequence[str]) -> str:
    """The module that holds all of `layers`; the first of them where none does."""
    parts = zip(*(name.split(".") for name in layers), strict=False)
    shared = [each[0] for each in itertools.takewhile(lambda each: len(set(each)) == 1, parts)]
    return ".".join(shared) or layers[0]


def _shape_after(layers: Sequence[Layer]) -> tuple[int, int, int]:
    """Channels, height and width of what the last of `layers` puts out."""
    height, width = layers[0].height, layers[0].width
    for layer in layers:
        height, width = -(-height // layer.stride), -(-width // layer.stride)
    return layers[-1].out_channels, height, width


def _label(kernel: int, expansion: int) -> str:
    return f"MB{expansion} {kernel}×{kernel}"
