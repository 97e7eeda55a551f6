"""The network of mobile inverted bottlenecks: its shape, its candidates, its costs, and what makes none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from backends.macs import MacsCost, ParamsCost
from backends.mbconv import MBConvNetwork, build
from backends.mixed_operation import Cell, MixedOperation, mixed_operations
from backends.operation_space import operation_space
from backends.operation_surgery import OperationSurgery
from compsearch.composition import compose_config, make

ALL = ["k3_e3", "k3_e6", "k5_e3", "k5_e6", "k7_e3", "k7_e6", "zero"]


def small(**changes: Any) -> MBConvNetwork:
    given: dict[str, Any] = {
        "num_classes": 5,
        "stem_channels": 8,
        "stem_stride": 1,
        "first_channels": 8,
        "stages": [{"channels": 8, "cells": 2, "stride": 1}, {"channels": 16, "cells": 2, "stride": 2}],
        "head_channels": 24,
        "candidates": ["k3_e3", "zero", "k5_e6"],
        "width_multiplier": 1.0,
        "alike_noise": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(**(given | changes))


@pytest.mark.parametrize(
    ("name", "size", "left"),
    [("mbconv", 32, 4), pytest.param("mbconv_imagenet", 224, 7, marks=pytest.mark.slow)],
)
def test_the_paper_network_has_its_blocks_and_exact_costs(name: str, size: int, left: int) -> None:
    config = compose_config(["space=mbconv", f"model={name}", "run_name=test"])
    with torch.device("meta"):
        network = make(config["model"]["build"], {"num_classes": 10})
        fewer = make({**config["model"]["build"], "max_cells": 2}, {"num_classes": 10})
    mixed = mixed_operations(network)
    assert [len(module.candidates) for module in mixed.values()] == ([6] + [7] * 3) * 5 + [6]
    images = torch.empty(1, 3, size, size, device="meta")
    space = operation_space(fewer, images)  # of as many cells as take no more than a second
    assert [block.name for block in space.blocks] == [name for name in mixed if name[-11] in "01"]
    assert network.head(network.stages(network.first(network.stem(images)))).shape == (1, 1280, left, left)
    assert space.blocks[1].operations[0].name == "k7_e6"
    rng = np.random.default_rng(0)
    for _ in range(2):
        policy = space.select([], np.zeros(0), [rng.integers(len(block.operations)) for block in space.blocks])
        derived = OperationSurgery()(fewer, space, policy)
        with FlopCounterMode(display=False) as counter:
            derived(images)
        assert MacsCost(space).cost(policy) == counter.get_total_flops() / 2
        assert ParamsCost(space).cost(policy) == sum(parameter.numel() for parameter in derived.parameters())


def test_zero_is_offered_only_where_a_cell_has_a_shortcut() -> None:
    cells = [module for module in small().modules() if isinstance(module, Cell)]
    names = [(cell.has_shortcut, "zero" in cell.operation.names) for cell in cells]  # type: ignore[operator, union-attr]
    assert names == [(True, True), (True, True), (False, False), (True, True)]


def test_a_cell_with_a_shortcut_adds_its_input() -> None:
    network = small().eval()
    cell, x = network.stages[0][0], torch.randn(2, 8, 4, 4)  # type: ignore[index]
    assert torch.equal(cell(x), cell.operation(x) + x)
    assert torch.equal(network.stages[1][0](x), network.stages[1][0].operation(x))  # type: ignore[index]


def test_candidates_go_from_the_dearest_to_the_cheapest_and_zero_is_last() -> None:
    for mixed in mixed_operations(small(candidates=ALL[::-1])).values():
        assert [name for name in mixed.names if name != "zero"][:1] == ["k7_e6"]
        assert [name for name in mixed.names if name != "zero"][-1] == "k3_e3"
        assert "zero" not in mixed.names[:-1]


def test_an_operation_is_what_its_name_says() -> None:
    mixed = mixed_operations(small(candidates=["k5_e4", "k3_e1"]))["stages.1.0.operation"]
    large, plain = mixed.candidates
    assert mixed.names == ("k5_e4", "k3_e1")
    assert large.depthwise.conv.kernel_size == (5, 5)
    assert large.expand.conv.out_channels == large.depthwise.conv.groups == 4 * 8
    assert large.depthwise.conv.stride == (2, 2)
    assert not hasattr(plain, "expand")
    # Linear bottlenecks: no activation behind the projection.
    assert not any(isinstance(module, nn.ReLU6) for module in large.project.modules())


def test_widths_are_scaled_to_multiples_of_8_and_the_head_gets_no_narrower() -> None:
    network = small(width_multiplier=0.5, stages=[{"channels": 40, "cells": 1, "stride": 1}], head_channels=64)
    assert network.head.conv.in_channels == 24  # 20 is as near to 16, but that is less than nine tenths of it
    assert network.head.conv.out_channels == 64
    assert small(width_multiplier=2.0).head.conv.out_channels == 48


def test_stages_can_be_cut_to_fewer_cells() -> None:
    assert [len(stage) for stage in small(max_cells=1).stages] == [1, 1]  # type: ignore[arg-type]
    assert [len(stage) for stage in small(max_cells=9).stages] == [2, 2]  # type: ignore[arg-type]


def test_new_weights_follow_the_released_code() -> None:
    network = small(head_channels=4096)
    weight = network.head.conv.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / 4096) ** 0.5, rel=0.02)
    assert float(network.classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not network.classifier.bias.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": []}, "`candidates` must be distinct, and one at least other than zero"),
        ({"candidates": ["zero"]}, "`candidates` must be distinct, and one at least other than zero"),
        ({"candidates": ["k3_e3", "k3_e3"]}, "`candidates` must be distinct"),
        ({"candidates": ["k4_e3"]}, "a candidate must be zero, or k<kernel>_e<expansion> with an odd kernel"),
        ({"candidates": ["conv3"]}, "a candidate must be zero, or .* but got 'conv3'"),
        ({"stages": []}, "`stages` must be at least one"),
        ({"stages": [{"channels": 8, "cells": 1}]}, "a stage must have channels, cells, stride"),
        ({"stages": [{"channels": 8, "cells": 0, "stride": 1}]}, "each at least 1"),
        ({"width_multiplier": 0.0}, "`width_multiplier > 0` must hold"),
        ({"max_cells": 0}, "`max_cells >= 1` must hold"),
        ({"head_channels": 0}, "`channels >= 1` must hold"),
    ],
)
def test_what_makes_no_network_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_the_model_chosen_on_the_command_line_wins_over_the_space() -> None:
    for overrides in (["model=mbconv_imagenet", "space=mbconv"], ["space=mbconv", "model=mbconv_imagenet"]):
        config = compose_config([*overrides, "run_name=test"])
        assert config["model"]["name"] == "mbconv_imagenet"
        assert config["surgery"]["_target_"].endswith("OperationSurgery")
    assert compose_config(["space=mbconv", "run_name=test"])["model"]["name"] == "mbconv"


def test_candidates_that_start_alike_give_nearly_the_same() -> None:
    names = ["k3_e3", "k5_e3", "k3_e6", "k7_e6", "zero"]
    stages = [{"channels": 16, "cells": 2, "stride": 1}]
    images = torch.randn(4, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    similar = {}
    for alike in (True, False):
        network = small(candidates=names, stages=stages, alike_noise=0.1 if alike else None)
        [mixed, _] = [module for module in network.modules() if isinstance(module, MixedOperation)]
        with torch.no_grad():
            outputs = torch.stack([candidate(images).flatten() for candidate in mixed.candidates])
        similar[alike] = float(torch.corrcoef(outputs)[-1, :-1].min())
    assert similar[True] > 0.95
    assert similar[False] < 0.5


@pytest.mark.parametrize("names", [["k3_e3", "k3_e4", "k5_e6"], ["k3_e2", "k7_e5"], ["k5_e1", "k3_e1"]])
def test_without_noise_candidates_of_any_expansion_start_as_the_same_function(names: list[str]) -> None:
    network = small(candidates=names, stages=[{"channels": 16, "cells": 1, "stride": 1}], alike_noise=0.0)
    [mixed] = [module for module in network.modules() if isinstance(module, MixedOperation)]
    images = torch.randn(4, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, *others = (candidate.eval()(images) for candidate in mixed.candidates)
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-5, rtol=1e-4)


def test_candidates_that_cannot_start_alike_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"all expand or none does.*model\.build\.alike_noise=null") as caught:
        small(candidates=["k3_e6", "k3_e1"], alike_noise=0.1)
    assert "\n" not in str(caught.value)
