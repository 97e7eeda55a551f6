import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from backends.gram import (
    collect_moments,
    feature_indices,
    features_at,
    num_positions,
    outputs_at,
    sample_positions,
    weight_from_rows,
    weight_rows,
)
from backends.groups import trace
from backends.least_squares import LeastSquaresRecovery

LAYERS = {
    "3x3": (lambda: nn.Conv2d(6, 4, 3, padding=1), (6, 9, 7)),
    "strided": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False), (6, 9, 8)),
    "1x1": (lambda: nn.Conv2d(6, 4, 1), (6, 5, 5)),
    "oblong, dilated": (lambda: nn.Conv2d(6, 4, (3, 5), (1, 2), (2, 3), (2, 1)), (6, 11, 12)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), (6, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 7, 7)),
    "same": (lambda: nn.Conv2d(6, 4, (3, 5), padding="same"), (6, 7, 7)),
    "reflected": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), (6, 7, 7)),
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "linear on tokens": (lambda: nn.Linear(6, 4), (5, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("samples", [3, 1000])
def test_features_times_weight_rows_are_the_outputs(name: str, samples: int) -> None:
    make, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(0)
    layer = make()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        inputs = torch.randn(2, *shape, generator=generator)
        outputs = layer(inputs)
        positions = sample_positions(2, num_positions(layer, outputs.shape), samples, generator)
        features = features_at(layer, inputs, positions)
        rows = weight_rows(layer, layer.weight)
        computed = torch.einsum("mgk,gok->mgo", features, rows).flatten(1)
    if layer.bias is not None:
        computed = computed + layer.bias
    assert torch.allclose(computed, outputs_at(layer, outputs, positions), atol=1e-5)
    assert torch.equal(weight_from_rows(layer, rows), layer.weight)


def test_positions_of_an_image_are_distinct_and_differ_between_images() -> None:
    positions = sample_positions(50, 64, 20, torch.Generator().manual_seed(0))
    assert positions.shape == (50, 20)
    assert int(positions.min()) >= 0
    assert int(positions.max()) < 64
    assert all(len(set(row.tolist())) == 20 for row in positions)
    assert not torch.equal(positions[0], positions[1])
    assert len(positions.unique()) == 64


def test_feature_indices_select_the_features_of_the_kept_channels() -> None:
    layer, kept = nn.Conv2d(6, 4, 3), torch.tensor([0, 3, 5])
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 6, 5, 5, generator=generator)
    positions = sample_positions(2, 9, 9, generator)
    small = nn.Conv2d(3, 4, 3)
    picked = features_at(layer, inputs, positions)[..., feature_indices(layer, kept)]
    assert torch.equal(picked, features_at(small, inputs[:, kept], positions))


def test_moments_equal_those_of_all_inputs(tiny: SimpleNamespace) -> None:
    options: dict[str, Any] = {"positions_per_image": 10**6, "batch_size": 20, "seed": 0}
    moments = collect_moments(tiny.model, ["conv2"], tiny.calibration, device=torch.device("cpu"), **options)["conv2"]
    images = torch.cat([batch for batch, _ in tiny.calibration.batches(16)])
    with torch.no_grad():
        model = copy.deepcopy(tiny.model)
        hidden = F.relu(model.norm1(model.conv1(F.relu(model.stem_norm(model.stem(images))))))
        unfolded = F.unfold(hidden, 3, padding=1)  # [B, channels * taps, positions]
    features = unfolded.unflatten(1, (12, 9)).transpose(1, 2).flatten(1, 2).transpose(1, 2).flatten(0, 1)
    assert torch.allclose(moments.mean, features.mean(0), atol=1e-5)
    assert torch.allclose(moments.second, features.T @ features / len(features), atol=1e-5)


def test_moments_of_resnet50_fit_in_four_gib(tiny: SimpleNamespace) -> None:
    model = torchvision.models.resnet50()
    space = trace(model, torch.zeros(2, 3, 64, 64), divisor=8, min_keep_ratio=0.1)
    recovery = LeastSquaresRecovery(
        model=model,
        space=space,
        calibration=tiny.calibration,
        device=torch.device("cpu"),
        seed=0,
        positions_per_image=16,
        ridge=1e-3,
        batch_size=64,
        max_gram_gib=4.0,
    )
    assert recovery.left_out == {}
