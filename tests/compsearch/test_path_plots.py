"""The plots of a search over paths show what they say they show."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import same_color, to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from compsearch.assembly import Parts
from compsearch.budget import Budget
from compsearch.candidates import Candidates, candidates_of
from compsearch.paths import PathState
from compsearch.report import run_plots
from compsearch.report.derived_plot import derived_figure, is_drawable, save_derived
from compsearch.report.expected_plot import expected_figure, save_expected
from compsearch.report.operations import forward_order, kernel_colors, operation_colors, short_names, skipped_groups
from compsearch.report.paths_plot import path_history, paths_figure, save_paths, warmup_end
from compsearch.report.policy_plot import policy_figure
from compsearch.report.run_plots import PLOT_FILES, Drawn, draw_run
from compsearch.report.timed import Spread
from compsearch.space import Block, FloatArray, Layer, Operation, SearchSpace
from compsearch.toy import toy_space
from compsearch.trial import Measurement, Trial

OPERATIONS = ("k7_e6", "k5_e6", "k3_e6", "k7_e3", "k5_e3", "k3_e3")


def mbconv_space() -> SearchSpace:
    """A stem, a fixed bottleneck, three searched ones, of which the last may be skipped, a head, a classifier."""
    layers: list[Layer] = []

    def add(name: str, kind: str, ins: int, outs: int, size: int, stride: int = 1, kernel: int = 1) -> None:
        weights = outs * kernel**2 * (1 if kind == "depthwise" else ins)
        positions = (size // stride) ** 2
        shape = (ins, outs, size, size, stride, kernel)
        layers.append(Layer(name, f"{name}.weight", kind, *shape, positions, positions * weights, weights))

    add("stem.conv", "conv", 3, 32, 32, kernel=3)
    add("first.depthwise.conv", "depthwise", 32, 32, 32, kernel=3)
    add("first.project.conv", "conv", 32, 16, 32)
    blocks = []
    for number, (ins, size, stride) in enumerate(((16, 32, 1), (24, 32, 2), (24, 16, 1))):
        operations = []
        for name in OPERATIONS:
            kernel, inner = int(name[1]), ins * int(name[4])
            module = f"stages.{number}.{name}"
            add(f"{module}.expand.conv", "conv", ins, inner, size)
            add(f"{module}.depthwise.conv", "depthwise", inner, inner, size, stride, kernel)
            add(f"{module}.project.conv", "conv", inner, 24, size // stride)
            operations.append(Operation(name, (module,)))
        blocks.append(Block(f"stages.{number}", (*operations, *([Operation("zero")] if number == 2 else []))))
    add("head.conv", "conv", 24, 64, 16)
    add("classifier", "linear", 64, 10, 1)
    return SearchSpace((), tuple(layers), (), (), "toy mbconv", blocks=tuple(blocks))


def width_space() -> SearchSpace:
    """The toy space, in which the branch of conv5 and conv6 may be skipped."""
    block = Block("branch", (Operation("keep", ("conv5", "conv6")), Operation("zero")))
    return dataclasses.replace(toy_space(), blocks=(block,))


MBCONV, WIDTH = mbconv_space(), width_space()
RATIOS = (1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
BUDGET = Budget("macs", 0.5, 1.0)


def candidates(space: SearchSpace) -> Candidates:
    return candidates_of(space, RATIOS)


def state_of(space: SearchSpace, epoch: int, *, warmup: int) -> PathState:
    """All equal until `warmup`, then ever more for the last candidate of every choice."""
    probabilities = {}
    for name, labels in zip(candidates(space).names, candidates(space).labels, strict=True):
        logits = np.zeros(len(labels))
        logits[-1] = 0.3 * max(0, epoch - warmup)
        shares = np.exp(logits) / np.exp(logits).sum()
        probabilities[name] = dict(zip(labels, shares.tolist(), strict=True))
    return PathState(epoch, 0.8 - 0.02 * epoch, 2.0 - 0.1 * epoch, probabilities)


def trial_of(space: SearchSpace, state: PathState | None, *, cost_ratio: float = 0.45, accuracy: float = 0.6) -> Trial:
    measurement = Measurement("search", 100, accuracy, accuracy, 1 - accuracy)
    genome = {} if state is None else state.to_genome()
    return Trial(space.full_policy(), measurement, accuracy, cost_ratio, genome=genome)


def search(space: SearchSpace, *, epochs: int = 8, warmup: int = 3) -> list[Trial]:
    """A derived network per epoch, dearer by 0.01 each, and two samples, which say nothing of what was believed."""
    derived = [
        trial_of(space, state_of(space, epoch, warmup=warmup), cost_ratio=0.4 + 0.01 * epoch, accuracy=0.1 * epoch)
        for epoch in range(1, epochs + 1)
    ]
    return [*derived, trial_of(space, None), trial_of(space, None)]


def panels(figure: Figure) -> dict[str, Axes]:
    """The panels that are drawn in, by the choice that stands over each on the left."""
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.axison}


def bounds(area: PolyCollection) -> dict[float, tuple[float, float]]:
    """The lower and upper edge of an area by epoch."""
    points = np.asarray(area.get_paths()[0].vertices)
    return {
        epoch: (points[points[:, 0] == epoch, 1].min(), points[points[:, 0] == epoch, 1].max())
        for epoch in np.unique(points[:, 0]).tolist()
    }


def areas(axes: Axes) -> list[PolyCollection]:
    return [each for each in axes.collections if isinstance(each, PolyCollection)]


@pytest.mark.parametrize("space", [MBCONV, WIDTH])
def test_every_choice_has_a_panel_in_which_the_areas_of_its_candidates_fill_all_of_it(space: SearchSpace) -> None:
    history = path_history(search(space))
    drawn = panels(paths_figure(space, history, title="t"))
    assert sorted(drawn) == sorted(candidates(space).names)
    for name, axes in drawn.items():
        probabilities = [step.state.probabilities[name] for step in history]
        assert [area.get_label() for area in areas(axes)] == list(probabilities[0])
        edges = [bounds(area) for area in areas(axes)]
        for epoch, believed in enumerate(probabilities, start=1):
            assert edges[0][epoch][0] == 0.0
            assert edges[-1][epoch][1] == pytest.approx(1.0)
            for below, above in itertools.pairwise(edges):
                assert above[epoch][0] == below[epoch][1]
            assert [high - low for low, high in (edge[epoch] for edge in edges)] == pytest.approx(
                list(believed.values())
            )


def test_the_likeliest_candidate_at_the_end_stands_over_its_panel() -> None:
    drawn = panels(paths_figure(MBCONV, path_history(search(MBCONV)), title="t"))
    assert [axes.get_title(loc="right") for axes in drawn.values()] == ["k3_e3", "k3_e3", "zero"]


def test_panels_are_in_forward_order_a_block_before_the_groups_within_it() -> None:
    names = candidates(WIDTH).names
    assert names[-1] == "branch"
    order = forward_order(WIDTH, names)
    assert order == ["conv0", "conv1", "conv2", "conv3", "conv4", "branch", "conv5", "conv7", "hidden"]
    figure = paths_figure(WIDTH, path_history(search(WIDTH)), title="t")
    assert list(panels(figure)) == order
    assert "blocks in bold" in figure.get_suptitle()


def test_a_choice_of_one_candidate_is_counted_and_not_drawn() -> None:
    trials = [
        trial_of(WIDTH, PathState(epoch, 1.0, 1.0, {"conv0": {"1": 1.0}, "conv1": {"1": 0.5, "0.5": 0.5}}))
        for epoch in (1, 2)
    ]
    figure = paths_figure(WIDTH, path_history(trials), title="t")
    assert list(panels(figure)) == ["conv1"]
    assert "1 choice of one candidate not shown" in figure.get_suptitle()
    settled = [trial_of(WIDTH, PathState(1, 1.0, 1.0, {"conv0": {"1": 1.0}}))]
    assert panels(paths_figure(WIDTH, path_history(settled), title="t")) == {}


def test_a_line_marks_where_the_probabilities_begin_to_move() -> None:
    history = path_history(search(MBCONV, warmup=3))
    assert warmup_end(history) == 3
    figure = paths_figure(MBCONV, history, title="t")
    for axes in panels(figure).values():
        [line] = [line for line in axes.lines if line.get_label() == "_begin"]
        assert list(np.asarray(line.get_xdata())) == [3, 3]
    assert "paths begin to learn" in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("warmup", [0, 100])
def test_there_is_no_such_line_where_they_move_at_once_or_never(warmup: int) -> None:
    history = path_history(search(MBCONV, warmup=warmup))
    assert warmup_end(history) is None
    figure = paths_figure(MBCONV, history, title="t")
    assert not [line for axes in figure.axes for line in axes.lines if line.get_label() == "_begin"]
    assert "paths begin to learn" not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_has_each_candidate_once_in_the_colour_of_its_areas() -> None:
    figure = paths_figure(MBCONV, path_history(search(MBCONV, warmup=0)), title="t")
    legend = figure.legends[0]
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [*OPERATIONS, "zero (block skipped)"]
    shown = dict(zip([*OPERATIONS, "zero"], legend.get_patches(), strict=True))
    for axes in panels(figure).values():
        for area in areas(axes):
            label = str(area.get_label())
            assert to_hex(area.get_facecolor()[0]) == to_hex(shown[label].get_facecolor())  # type: ignore[arg-type]
            assert bool(area.get_hatch()) == (label == "zero")


def test_many_widths_are_not_all_in_the_legend_and_the_ends_are() -> None:
    labels = [f"{width:.3g}" for width in np.linspace(1.0, 0.1, 20)]
    state = PathState(1, 1.0, 1.0, {"conv0": dict.fromkeys(labels, 0.05)})
    texts = paths_figure(WIDTH, path_history([trial_of(WIDTH, state)]), title="t").legends[0].get_texts()
    assert (len(texts), texts[0].get_text(), texts[-1].get_text()) == (8, "keep_ratio 1", "0.1")


def grey(color: str) -> float:
    return float(np.dot((0.299, 0.587, 0.114), to_rgb(color)))


def test_operations_are_told_apart_by_hue_and_in_grey() -> None:
    colors = operation_colors([*OPERATIONS, "zero", "keep", "other"])
    assert len(set(colors.values())) == 9
    greys = sorted(grey(colors[name]) for name in OPERATIONS)
    assert min(b - a for a, b in itertools.pairwise(greys)) > 0.08
    for kernel in (3, 5, 7):
        assert grey(colors[f"k{kernel}_e6"]) < grey(colors[f"k{kernel}_e3"])
    assert {kernel: colors[f"k{kernel}_e6"] for kernel in (3, 5, 7)} == kernel_colors((7, 5, 3))


def test_names_are_shortened_only_where_they_are_long() -> None:
    assert short_names(["stages.0", "stages.1"], 10) == ["stages.0", "stages.1"]
    assert short_names(["net.body.layer1.0", "net.body.layer2.0"], 10) == ["layer1.0", "layer2.0"]
    assert short_names(["a.very_long_name.conv1"], 8) == ["…e.conv1"]
    assert short_names(["stages.0.0.operation", "stages.1.0.operation"], 12) == ["stages.0.0", "stages.1.0"]
    assert short_names(["same.same.same", "same.same.same"], 3) == ["…me", "…me"]
    assert short_names([], 8) == []


def test_titles_do_not_run_into_panels_or_into_each_other_with_90_choices() -> None:
    layers = [Layer(f"layer3.{n}.conv1", "w", "conv", 8, 8, 8, 8, 1, 3, 64.0, 64.0, 64) for n in range(90)]
    space = SearchSpace((), tuple(layers), (), (), "many")
    shares = dict(zip((f"{ratio:g}" for ratio in RATIOS), [0.125] * 8, strict=True))
    states = [PathState(epoch, 1.0, 1.0, {layer.name: shares for layer in layers}) for epoch in (1, 60)]
    figure = paths_figure(space, path_history([trial_of(WIDTH, state) for state in states]), title="model " * 12)
    figure.draw_without_rendering()
    drawn = list(panels(figure).values())
    assert len(drawn) == 90
    lowest = min(text.get_window_extent().y0 for text in figure.texts if text.get_text().startswith("model"))
    top = 0.0
    for axes in drawn:
        left, right = axes._left_title, axes._right_title  # type: ignore[attr-defined]
        assert left.get_window_extent().x1 < right.get_window_extent().x0
        top = max(top, left.get_window_extent().y1)
    assert top < lowest


def test_only_the_last_trial_of_an_epoch_counts_and_samples_do_not() -> None:
    before, after = state_of(MBCONV, 1, warmup=0), state_of(MBCONV, 2, warmup=0)
    again = dataclasses.replace(after, train_loss=7.0)
    lost = dataclasses.replace(after, epoch=3, probabilities={"stages.0": {"k7_e6": float("nan"), "k3_e3": 0.5}})
    trials = [trial_of(MBCONV, state) for state in (before, after, None, again, lost)]
    history = path_history(trials)
    assert [(step.index, step.state.epoch, step.state.train_loss) for step in history] == [(0, 1, 1.9), (3, 2, 7.0)]
    assert path_history([trial_of(MBCONV, None)]) == []


def lines(axes: Axes) -> Mapping[str, FloatArray]:
    return {str(line.get_label()): np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines}


def test_expected_and_derived_costs_stand_beside_the_budget() -> None:
    history = path_history(search(MBCONV))
    cost, entropy, loss, accuracy = expected_figure(history, resource="macs", budget=BUDGET, title="t").axes
    assert lines(cost)["expected: mean of networks drawn"] == pytest.approx([0.8 - 0.02 * n for n in range(1, 9)])
    assert lines(cost)["budget 0.5"] == pytest.approx([0.5, 0.5])
    [derived] = [each for each in cost.collections if str(each.get_label()).startswith("derived")]
    assert np.asarray(derived.get_offsets()) == pytest.approx(np.array([(n, 0.4 + 0.01 * n) for n in range(1, 9)]))
    assert "FLOPs (MACs)" in cost.get_ylabel()
    [believed] = lines(entropy).values()
    assert believed == pytest.approx([step.state.entropy for step in history])
    assert believed[:3] == pytest.approx([1.0] * 3)
    assert np.all(np.diff(believed[2:]) < 0)
    assert next(iter(lines(loss).values())) == pytest.approx([2.0 - 0.1 * n for n in range(1, 9)])
    assert next(iter(lines(accuracy).values())) == pytest.approx([0.1 * n for n in range(1, 9)])
    assert "search split" in accuracy.get_ylabel()


def test_without_a_budget_there_is_no_line_for_it() -> None:
    cost = expected_figure(path_history(search(MBCONV)), resource="macs", budget=None, title="t").axes[0]
    assert not [label for label in lines(cost) if "budget" in label]


def test_measured_latencies_are_drawn_at_the_epoch_of_their_trial() -> None:
    spreads = {1: Spread(0.7, 0.6, 0.9), 4: Spread(0.65, 0.6, 0.7), 9: Spread(0.1, 0.1, 0.1)}
    spreads[2] = Spread(float("nan"), float("nan"), float("nan"))
    figure = expected_figure(
        path_history(search(MBCONV)), resource="latency_ms", budget=BUDGET, title="t", latencies=spreads
    )
    [container] = figure.axes[0].containers
    assert "measured latency" in str(container.get_label())
    points, _, [bars] = container.lines  # type: ignore[attr-defined]
    assert list(points.get_xdata()) == [2, 5]  # trial 9 is a sample and has no epoch
    assert list(points.get_ydata()) == [0.7, 0.65]
    assert [sorted(segment[:, 1]) for segment in bars.get_segments()] == [
        pytest.approx([0.6, 0.9]),
        pytest.approx([0.6, 0.7]),
    ]


def test_epochs_before_the_paths_learn_are_shaded_in_every_panel() -> None:
    figure = expected_figure(path_history(search(MBCONV, warmup=3)), resource="macs", budget=None, title="t")
    for axes in figure.axes:
        [span] = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert (span.get_x(), span.get_x() + span.get_width()) == (0.5, 3)
    figure = expected_figure(path_history(search(MBCONV, warmup=0)), resource="macs", budget=None, title="t")
    assert not [patch for axes in figure.axes for patch in axes.patches]


def test_a_network_that_failed_leaves_a_gap() -> None:
    trials = search(MBCONV)
    trials[3] = trial_of(MBCONV, state_of(MBCONV, 4, warmup=3), accuracy=float("nan"))
    figure = expected_figure(path_history(trials), resource="macs", budget=BUDGET, title="t")
    figure.draw_without_rendering()
    [accuracy] = lines(figure.axes[3]).values()
    assert list(np.isnan(accuracy)) == [False] * 3 + [True] + [False] * 4


@pytest.mark.parametrize("space", [MBCONV, WIDTH])
def test_a_single_epoch_is_drawn(space: SearchSpace) -> None:
    history = path_history(search(space))[:1]
    figure = paths_figure(space, history, title="t")
    for axes in panels(figure).values():
        assert sorted(bounds(areas(axes)[0])) == [0.5, 1.5]
        assert axes.get_xlim() == (0.5, 1.5)
    expected = expected_figure(history, resource="macs", budget=BUDGET, title="t")
    for each in (figure, expected):
        each.draw_without_rendering()
    assert [label.get_text() for label in expected.axes[-1].get_xticklabels()] == ["1"]


def test_nothing_believed_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one trial must say what its search believed"):
        paths_figure(MBCONV, [], title="t")
    with pytest.raises(ValueError, match="at least one trial must say what its search believed"):
        expected_figure([], resource="macs", budget=BUDGET, title="t")


def boxes(figure: Figure) -> dict[str, Rectangle]:
    return {str(patch.get_gid()): patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)}


def derived(*operations: str) -> Figure:
    indices = [OPERATIONS.index(name) if name in OPERATIONS else len(OPERATIONS) for name in operations]
    return derived_figure(MBCONV, MBCONV.select([], np.zeros(0), indices), title="t")


def test_the_derived_network_has_a_box_per_block_and_per_fixed_layer_in_forward_order() -> None:
    found = boxes(derived("k7_e6", "k5_e3", "k3_e6"))
    names = ["stem.conv", "first", "stages.0", "stages.1", "stages.2", "head.conv", "classifier"]
    assert list(found) == names
    assert [box.get_x() + box.get_width() / 2 for box in found.values()] == pytest.approx(list(range(7)))


def test_colour_is_the_kernel_size_and_height_the_expansion() -> None:
    figure = derived("k7_e6", "k5_e3", "k3_e6")
    found, colors = boxes(figure), kernel_colors((3, 5, 7))
    for name, kernel, expansion in (("first", 3, 1), ("stages.0", 7, 6), ("stages.1", 5, 3), ("stages.2", 3, 6)):
        assert same_color(found[name].get_facecolor(), colors[kernel])
        assert found[name].get_height() == pytest.approx(expansion / 6)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {"MB1 3×3", "MB6 7×7", "MB3 5×5", "MB6 3×3", "Conv 3×3", "Conv 1×1", "FC"} <= set(texts)


def test_a_skipped_block_is_a_dashed_outline_without_filling() -> None:
    figure = derived("k7_e6", "k5_e3", "zero")
    found = boxes(figure)
    assert found["stages.2"].get_facecolor() == (0.0, 0.0, 0.0, 0.0)
    assert found["stages.2"].get_linestyle() in ("--", "dashed")
    assert all(to_rgba(box.get_facecolor())[3] == 1.0 for name, box in found.items() if name != "stages.2")
    assert "2 of 3 searched blocks stay" in figure.axes[0].get_title()
    assert "skip" in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("last", ["k3_e3", "zero"])
def test_stages_end_where_channels_or_size_change_also_with_a_skipped_block(last: str) -> None:
    figure = derived("k7_e6", "k5_e3", last)
    texts = [text.get_text() for text in figure.axes[0].texts]
    stages = [text for text in texts if text.count("\n") == 1 and text[0].isdigit()]
    assert stages == ["32\n32×32", "16\n32×32", "24\n32×32", "24\n16×16", "64\n16×16"]
    assert "input\n3\n32×32" in texts
    bars = [float(np.asarray(line.get_xdata())[0]) for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert bars == [0.5, 1.5, 2.5, 4.5, 5.5]


def test_only_spaces_of_inverted_bottlenecks_are_drawn_so() -> None:
    assert is_drawable(MBCONV)
    assert not is_drawable(WIDTH)
    with pytest.raises(ValueError, match="a block must choose among inverted bottlenecks"):
        derived_figure(WIDTH, WIDTH.full_policy(), title="t")
    with pytest.raises(ValueError, match="a policy must"):
        derived_figure(MBCONV, WIDTH.full_policy(), title="t")


def test_the_policy_plot_marks_groups_of_skipped_blocks() -> None:
    counts, importance = WIDTH.sizes.tolist(), np.zeros(WIDTH.num_units)
    kept, skipped = (WIDTH.select(counts, importance, [index]) for index in (0, 1))
    # conv6 emits into what conv4 emits: its group stays.
    assert skipped_groups(WIDTH, skipped) == {"conv5"}
    assert skipped_groups(WIDTH, kept) == frozenset()
    axes = policy_figure(WIDTH, skipped, title="t").axes[0]
    for group, bar, label in zip(WIDTH.groups, axes.containers[1], axes.get_xticklabels(), strict=True):
        is_skipped = group.name == "conv5"
        assert same_color(bar.get_facecolor(), "white") == is_skipped
        assert label.get_text().endswith("skipped") == is_skipped
    texts = [label.get_text() for label in policy_figure(WIDTH, kept, title="t").axes[0].get_xticklabels()]
    assert not any("skipped" in text for text in texts)


def test_path_plots_are_written(tmp_path: Path) -> None:
    history = path_history(search(MBCONV))
    save_paths(tmp_path / "paths.png", MBCONV, history, title="t")
    save_expected(tmp_path / "expected.png", history, resource="macs", budget=BUDGET, title="t")
    save_derived(tmp_path / "derived.png", MBCONV, MBCONV.full_policy(), title="t")
    for name in ("paths.png", "expected.png", "derived.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


class _Cost:
    resource = "macs"


@dataclasses.dataclass
class _Parts:
    """What `draw_run` reads of a run's parts."""

    space: SearchSpace
    budget: Budget | None = None
    cost_model: _Cost = dataclasses.field(default_factory=_Cost)
    searcher: None = None


@dataclasses.dataclass
class _Summary:
    model: str = "m"
    dataset: str = "d"
    searcher: str = "ProxylessNAS"
    seed: int = 0
    networks: Sequence[Any] = ()
    family: Sequence[Any] = ()


def drawn_files(space: SearchSpace, trials: Sequence[Trial], path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the plots that `draw_run` writes beside the Pareto and latency plots, which other tests look at."""
    monkeypatch.setattr(run_plots, "save_pareto", lambda *arguments, **options: None)
    monkeypatch.setattr(run_plots, "_draw_latency", lambda *arguments: None)
    recover = {"_target_": "backends.recovery.NoRecovery"}
    config = {"budget": {"label": "50%"}, "recover": recover, "finalist": {"recover": recover, "calibration_images": 1}}
    drawn = Drawn(trials, [], trials[0], trials[0].policy, None, _Summary())  # type: ignore[arg-type]
    parts: Parts = _Parts(space)  # type: ignore[assignment]
    draw_run(path, config, parts, drawn)
    written = {file.name for file in path.iterdir()}
    assert written <= set(PLOT_FILES)
    return written


def test_a_run_over_operations_gets_its_plots_and_none_of_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = drawn_files(MBCONV, search(MBCONV), tmp_path, monkeypatch)
    assert written == {"search.png", "paths.png", "expected.png", "derived.png"}


def test_a_run_over_widths_gets_the_policy_plot_and_no_derived_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = drawn_files(WIDTH, search(WIDTH), tmp_path, monkeypatch)
    assert written == {"search.png", "policy.png", "paths.png", "expected.png"}


def test_runs_of_other_searchers_get_no_path_plots_and_keep_their_genome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = dataclasses.replace(trial_of(WIDTH, None), genome={"alpha": {"conv0": 2.0}})
    assert drawn_files(WIDTH, [learned], tmp_path, monkeypatch) == {"search.png", "policy.png", "genome.png"}
