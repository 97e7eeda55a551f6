"""Every torchvision classifier: traced, and random policies extracted exactly.

``pytest -m slow tests/backends/test_torchvision.py`` runs all of them and prints a table.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from backends.groups import trace
from backends.surgery import extract, mask
from compsearch.space import Policy, SearchSpace

NAMES = torchvision.models.list_models(module=torchvision.models)
FAST = [
    *("alexnet", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1"),
]
#: The smallest image each takes, where it is not 32.
SIZES = {"alexnet": 63, "inception_v3": 75, "maxvit_t": 224, "vit_b_16": 32, "vit_h_14": 28, "vit_l_16": 32}
OPTIONS = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    **{name: {"image_size": SIZES.get(name, 32)} for name in NAMES if name.startswith("vit_")},
}
#: How the first layer of each MLP is called, which must be offered although attention need not be.
HIDDEN = {"vit_": ".mlp.0", "swin": ".mlp.0", "conv": ".block.3", "maxv": ".mlp_layer.1"}


#: Cosine attention amplifies rounding (1.1e-5 of swin_v2_b's logits in float32), so these are compared in float64.
DOUBLE = ("swin_v2",)


@dataclasses.dataclass(frozen=True)
class Row:
    """What the printed table says of a network; `exact` is the largest difference relative to the largest logit."""

    name: str
    groups: int
    prunable: int
    frozen: Counter[str]
    seconds: float
    exact: float
    norms: int

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.frozen.most_common())
        norms = f" ({self.norms} layer norms seeing kept channels)" if self.norms else ""
        return (
            f"{self.name:20s} {self.groups:6d} {self.prunable:8d} {self.frozen.total():7d} {self.seconds:8.1f} "
            f"{self.exact:9.1e}  {reasons}{norms}"
        )


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    rows: list[Row] = []
    yield rows
    if rows:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("\n\nnetwork              groups prunable  frozen  trace s  max diff  frozen channels by reason")
            print("\n".join(str(row) for row in sorted(rows, key=lambda row: row.name)))
            print(f"{len(rows)} networks, largest difference {max(row.exact for row in rows):.1e}")


def build(name: str) -> nn.Module:
    """A classifier whose every part shows in the logits: norms with statistics, no weight so small that it hides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, **OPTIONS.get(name, {})).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
            if isinstance(module, nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
            if isinstance(module, nn.Linear) and not module.weight.any():
                nn.init.normal_(module.weight, std=0.1)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("layer_scale"):
                nn.init.uniform_(parameter, 0.2, 0.6)
    return model


def random_policy(space: SearchSpace, seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    return space.select([rng.choice(group.counts) for group in space.groups], rng.random(space.num_units))


def see_kept_channels_only(model: nn.Module, space: SearchSpace, policy: Policy) -> int:
    """Makes layer norms over pruned channels of a masked network ignore the removed ones; returns how many."""
    keep = np.append(space.keep_mask(policy), True)
    kept = {site.parameter: np.flatnonzero(keep[site.units]) for site in space.sites}
    norms = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and f"{name}.weight" in kept:
            module.forward = KeptNorm(module, torch.from_numpy(kept[f"{name}.weight"]))  # type: ignore[method-assign]
            norms += 1
    return norms


class KeptNorm:
    """Layer norm of the kept channels of a full-size tensor, zero elsewhere."""

    def __init__(self, norm: nn.LayerNorm, kept: Tensor) -> None:
        self._kept, self._eps = kept, norm.eps
        self._weight, self._bias = norm.weight[kept], norm.bias[kept]
        self._channels_first = isinstance(norm, torchvision.models.convnext.LayerNorm2d)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1) if self._channels_first else x
        out = torch.zeros_like(x)
        out[..., self._kept] = F.layer_norm(x[..., self._kept], (len(self._kept),), self._weight, self._bias, self._eps)
        return out.permute(0, 3, 1, 2) if self._channels_first else out


def check(name: str, policies: int) -> Row:
    dtype = torch.float64 if name.startswith(DOUBLE) else torch.float32
    model = build(name).to(dtype)
    size = SIZES.get(name, 32)
    start = time.perf_counter()
    space = trace(model, torch.zeros(2, 3, size, size, dtype=dtype), divisor=8, min_keep_ratio=0.1)
    seconds = time.perf_counter() - start
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)
    differences = []
    norms = 0
    for seed in range(policies):
        policy = random_policy(space, seed)
        # One copy at a time: the largest networks have 644 million parameters.
        reference = mask(model, space, policy)
        norms = see_kept_channels_only(reference, space, policy)
        with torch.no_grad():
            expected = reference(x)
        del reference
        gc.collect()
        with torch.no_grad():
            logits = extract(model, space, policy)(x)
        gc.collect()
        assert logits.shape == expected.shape == (2, 1000)
        differences.append(float((logits - expected).abs().max() / expected.abs().max()))
    frozen: Counter[str] = Counter()
    for item in space.frozen:
        frozen[item.reason.partition(" in ")[0].partition(":")[0].rstrip(",")] += item.size
    row = Row(
        name=name,
        groups=len(space.groups),
        prunable=sum(group.size * group.width for group in space.groups),
        frozen=frozen,
        seconds=seconds,
        exact=max(differences),
        norms=norms,
    )
    assert row.exact < 1e-5, row
    offered = {producer for group in space.groups for producer in group.producers}
    if name.startswith(tuple(HIDDEN)):
        hidden = {layer for layer, module in model.named_modules() if layer.endswith(HIDDEN[name[:4]])}
        assert hidden
        assert hidden <= offered, sorted(hidden - offered)
    if not name.startswith(("vit", "swin", "maxvit", "shufflenet")):
        assert set(frozen) == {"reaches the network's output"}, row
    return row


def test_there_are_eighty_classifiers() -> None:
    assert len(NAMES) == 80
    assert set(FAST) <= set(NAMES)


@pytest.mark.parametrize("name", FAST)
def test_random_policies_extract_exactly(name: str) -> None:
    check(name, policies=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_random_policies_of_every_classifier_extract_exactly(name: str, table: list[Row]) -> None:
    table.append(check(name, policies=2))
