"""How long one score takes: ours against the ways it is done elsewhere, and what each ingredient brings.

    python -m benchmarks.scoring --images FOLDER --weights FILE

FOLDER holds train/<class>/*.png, FILE a state_dict of the CIFAR ResNet; without them images and weights are random,
which times the same and says nothing about predictions. Every network is ResNet-56 with its inner channels cut
uniformly to half the MACs. Compared are, on the same images and with the same recovery,

(a) scoring as AMC's released code does it: the full-size float32 network with zeroed channels, a DataLoader that opens,
    decodes and normalises each image, in batches of 50 with 16 loader processes (its defaults), and for least squares
    scikit-learn's LinearRegression of each layer's dense outputs on the features it keeps, which are collected once;
(b) the same full-size float32 network fed from tensors in memory, in batches of 64 (the fastest of 16 to 256 here),
    with this project's least squares;
(c) `NetworkEvaluator`.

Everything is timed in turns over several rounds. The fastest round of each counts, as the others had to share the
machine; medians are printed beside. That is one policy again and again, with counts of channels that fill vectors.
What a search scores is always new, so that kernels are made, and its counts are any: such policies come after it.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from backends.batch_norm import BatchNormRecovery
from backends.data import TensorSplit
from backends.evaluate import NetworkEvaluator
from backends.execution import Execution
from backends.fast_inference import FusedNetwork, folded
from backends.fusion import LayerStep, layer_at, make_plan, norm_at
from backends.groups import trace
from backends.importance import l1_inputs
from backends.least_squares import LeastSquaresRecovery
from backends.macs import MacsCost
from backends.recovery import NoRecovery, Recovery
from backends.surgery import ChannelSurgery, extract, mask
from backends.workers import Workers
from benchmarks.released_scoring import LOADER_WORKERS, Regressions, through_loader
from benchmarks.scoring_setting import BATCH, POSITIONS, Setting, batched, random_images, read_setting
from compsearch.space import Policy

CPU = torch.device("cpu")
Pass = Callable[[], Tensor]
Result = TypeVar("Result")


class Stopwatch:
    """Seconds by name, one list entry per round."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def time(self, name: str, run: Callable[..., Result], *arguments: Any) -> Result:
        start = time.perf_counter()
        result = run(*arguments)
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def best(self, name: str) -> float:
        return min(self.seconds[name])

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder with train/<class>/*.png")
    parser.add_argument("--weights", type=Path, help="a state_dict of ResNet-56")
    parser.add_argument("--num-images", type=int, default=2048)
    parser.add_argument("--num-calibration", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        images = options.images or random_images(Path(folder), options.num_images + options.num_calibration)
        setting = read_setting(images, options.weights, options.num_images, options.num_calibration)
        ratio = MacsCost(setting.space).cost(setting.policy) / MacsCost(setting.space).cost(setting.space.full_policy())
        print(f"ResNet-56 at {100 * ratio:.1f}% of its MACs, {setting.search.num_images} images,", end=" ")
        print(f"{setting.calibration.num_images} for calibration, {torch.get_num_threads()} threads\n")
        rate = _matrix_rate(options.rounds)
        regressions = Regressions(setting)
        recovered = _compare(setting, regressions, options.rounds)
        _ladder(setting, recovered, options.rounds, rate)
        _score_new_policies(setting, options.rounds)
    _print_memory(regressions.num_bytes)


def _matrix_rate(rounds: int) -> float:
    """Multiply-accumulates per second of a large bfloat16 matrix product."""
    side = 4096
    a, b = torch.randn(side, side).bfloat16(), torch.randn(side, side).bfloat16()
    watch = Stopwatch()
    for _ in range(rounds + 1):
        watch.time("matmul", torch.mm, a, b)
    rate = side**3 / watch.best("matmul")
    print(f"bf16 matrix product {side}x{side}: {rate / 1e9:.0f} GMAC/s\n")
    return rate


# --- per policy: recovery and score, three ways ----------------------------------------------------------------------


def _compare(setting: Setting, regressions: Regressions, rounds: int) -> nn.Module:
    """Prints the table of whole scores; returns the network recovered by least squares."""
    recoveries: Mapping[str, Recovery] = {
        "none": NoRecovery(),
        "bn": BatchNormRecovery(
            calibration=setting.calibration,
            device=CPU,
            batch_size=BATCH,
            precision="auto",
        ),
        "lsq": _least_squares(setting),
    }
    print(f"{'recovery':9}{'':14}{'recover':>9}{'score':>8}{'total':>8}{'median':>8}{'ratio':>7}   predictions equal")
    recovered: nn.Module | None = None
    for name, recovery in recoveries.items():
        evaluator = _evaluator(setting, recovery)
        execution, workers = evaluator.execution, Workers()
        batches = torch.split(setting.search.images.to(memory_format=torch.channels_last), BATCH)
        released = regressions if name == "lsq" else functools.partial(_full_size, setting, name, recoveries, True)
        watch = Stopwatch()
        for _ in range(rounds):
            full = watch.time("a recover", released)
            watch.time("a score", through_loader, full, setting.search_files, LOADER_WORKERS)
            full = watch.time("b recover", _full_size, setting, name, recoveries, False)
            expected = watch.time("b score", batched, full, setting.search.images, BATCH)
            network = watch.time("c recover", evaluator.recovered, setting.policy)
            got, _ = watch.time("c score", execution.logits, network, batches, workers)
        equal = (expected.argmax(1) == got.argmax(1)).float().mean()
        ours = watch.best("c recover") + watch.best("c score")
        for side in "abc":
            parts = [f"{side} recover", f"{side} score"]
            best, median = sum(map(watch.best, parts)), sum(map(watch.median, parts))
            seconds = "".join(f"{value:8.3f}" for value in (*map(watch.best, parts), best, median))
            label = {"a": "(a) released", "b": "(b) in memory", "c": "(c) ours"}[side]
            tail = f"   {100 * equal:.2f}% ({execution})" if side == "c" else ""
            print(f"{name if side == 'a' else '':9}{label:14} {seconds}{best / ours:6.1f}x{tail}")
        recovered = network
    assert recovered is not None
    print()
    return recovered


def _least_squares(setting: Setting) -> LeastSquaresRecovery:
    recovery = LeastSquaresRecovery(
        model=setting.model,
        space=setting.space,
        calibration=setting.calibration,
        device=CPU,
        seed=0,
        positions_per_image=POSITIONS,
        ridge=1e-3,
        batch_size=64,
        max_gram_gib=4.0,
    )
    start = time.perf_counter()
    recovery.moments  # noqa: B018  the pass that is made once
    print(f"moments for least squares, once: {time.perf_counter() - start:.1f} s\n")
    return recovery


def _evaluator(setting: Setting, recovery: Recovery) -> NetworkEvaluator:
    return NetworkEvaluator(
        model=setting.model,
        space=setting.space,
        surgery=ChannelSurgery(),
        split=setting.search,
        recovery=recovery,
        cost_models=[MacsCost(setting.space)],
        device=CPU,
        batch_size=64,
        precision="auto",
    )


def _full_size(setting: Setting, name: str, recoveries: Mapping[str, Recovery], loader: bool) -> nn.Module:
    """The dense network with zeroed channels, recovered; `loader` says where calibration images come from."""
    network = mask(setting.model, setting.space, setting.policy)
    if name == "lsq":
        small = extract(setting.model, setting.space, setting.policy)
        recoveries[name](small, setting.policy)
        _embed(setting, small, network)
    elif name == "bn":
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        if loader:
            through_loader(network, setting.calibration_files, LOADER_WORKERS)
        else:
            batched(network, setting.calibration.images, BATCH)
        network.eval()
    return network


def _embed(setting: Setting, small: nn.Module, full: nn.Module) -> None:
    """Writes the tensors of an extracted network into the places they were cut from."""
    keep = np.append(setting.space.keep_mask(setting.policy), True)
    tensors = {**dict(small.named_parameters()), **dict(small.named_buffers())}
    for name, target in [*full.named_parameters(), *full.named_buffers()]:
        places = [torch.arange(size) for size in target.shape]
        for site in setting.space.sites:
            if site.parameter == name:
                places[site.dim] = torch.from_numpy(np.flatnonzero(keep[site.units]))
        if places:
            target[torch.meshgrid(*places, indexing="ij")] = tensors[name]


# --- policies as they come in a search --------------------------------------------------------------------------------


def _score_new_policies(setting: Setting, num_policies: int) -> None:
    """Prints what random policies take that no kernel was made for, recovery none: (b) against (c)."""
    space = trace(setting.model, setting.search.images[:2], divisor=1, min_keep_ratio=0.1, coupled=False)
    cost, rng = MacsCost(space), np.random.default_rng(0)
    dense, importance = cost.cost(space.full_policy()), l1_inputs(setting.model, space).scores()
    policies: list[Policy] = []
    while len(policies) < num_policies + 1:
        counts = [space.nearest_count(group, rng.uniform(0.1, 1.0)) for group in range(len(space.groups))]
        policy = space.select(counts, importance)
        if 0.45 <= cost.cost(policy) / dense <= 0.55:
            policies.append(policy)
    setting = dataclasses.replace(setting, space=space)
    evaluator = _evaluator(setting, NoRecovery())
    evaluator.measure(policies[:1])  # chooses how networks are run
    watch = Stopwatch()
    for policy in policies[1:]:
        watch.time("b", lambda: batched(mask(setting.model, space, policy), setting.search.images, BATCH))  # noqa: B023
        watch.time("c", evaluator.measure, [policy])
    full, ours = watch.median("b"), watch.median("c")
    print(f"{num_policies} new policies at 45 to 55% of the MACs, recovery none, seconds each (median)")
    print(f"(b) in memory {full:.3f}, (c) ours {ours:.3f}, {full / ours:.1f}x\n")


# --- what each ingredient brings --------------------------------------------------------------------------------------


def _ladder(setting: Setting, recovered: nn.Module, rounds: int, rate: float) -> None:
    """Prints scores of one recovered network, one ingredient more in each row."""
    full = mask(setting.model, setting.space, setting.policy)
    _embed(setting, recovered, full)
    plan = make_plan(recovered)
    assert plan is not None
    cost = MacsCost(setting.space)
    dense_macs, macs = cost.cost(setting.space.full_policy()), cost.cost(setting.policy)
    images = setting.search.images
    last = images.to(memory_format=torch.channels_last)
    bf16, batches = last.bfloat16(), torch.split(last, BATCH)
    norms_folded = _folded(recovered)
    nhwc = copy.deepcopy(norms_folded).to(memory_format=torch.channels_last)
    half = copy.deepcopy(nhwc).bfloat16()
    workers, evaluator = Workers(), _evaluator(setting, NoRecovery())
    checked = Execution(lambda _: plan, torch.bfloat16, evaluator.execution.doubt)

    def bound() -> Tensor:
        return torch.cat(workers.map(FusedNetwork(recovered, plan, dtype=torch.bfloat16), batches))

    rows: dict[str, tuple[float, Pass]] = {
        "(b) full size, in memory": (dense_macs, lambda: batched(full, images, BATCH)),
        "+ extracted": (macs, lambda: batched(recovered, images, BATCH)),
        "+ norms folded": (macs, lambda: batched(norms_folded, images, BATCH)),
        "+ channels last": (macs, lambda: batched(nhwc, last, BATCH)),
        "+ bfloat16": (macs, lambda: batched(half, bf16, BATCH)),
        "+ one core per batch": (macs, lambda: torch.cat(workers.map(half, torch.split(bf16, BATCH)))),
        "+ fused, packed": (macs, bound),
        "+ near ties in float32": (macs, lambda: checked.logits(recovered, batches, workers)[0]),
    }
    watch = Stopwatch()
    outputs: dict[str, Tensor] = {}
    loaders = (0, 2, LOADER_WORKERS)
    for _ in range(rounds):
        for name, (_, run) in rows.items():
            outputs[name] = watch.time(name, run)
        for num in loaders:
            watch.time(f"loaders {num}", through_loader, full, setting.search_files, num)
    base = watch.best("(b) full size, in memory")
    reference = outputs["(b) full size, in memory"].argmax(1)
    print(f"{'score only, recovery lsq':28}{'s':>8}{'median':>8}{'vs (b)':>8}{'of bf16 rate':>14}   predictions equal")
    for num in loaders:
        name = f"loaders {num}"
        label = f"(a) full size, {num} loaders"
        print(f"{label:28}{watch.best(name):8.3f}{watch.median(name):8.3f}{base / watch.best(name):7.1f}x")
    for name, (amount, _) in rows.items():
        seconds = watch.best(name)
        share = amount * setting.search.num_images / seconds / rate
        equal = (outputs[name].float().argmax(1) == reference).float().mean()
        print(
            f"{name:28}{seconds:8.3f}{watch.median(name):8.3f}{base / seconds:7.1f}x{100 * share:13.0f}%"
            f"   {100 * equal:.2f}%"
        )
    print()


def _folded(network: nn.Module) -> nn.Module:
    """A copy with every norm that follows a convolution folded into it."""
    network = copy.deepcopy(network)
    plan = make_plan(network)
    assert plan is not None
    for step in plan.steps:
        if isinstance(step, LayerStep) and step.norm is not None:
            layer = layer_at(network, step.layer)
            weight, bias = folded(layer, norm_at(network, step.norm))
            assert bias is not None
            layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
            network.set_submodule(step.norm, nn.Identity())
    return network


def _print_memory(features: int) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    model = torchvision.models.resnet50()
    space = trace(model, torch.zeros(2, 3, 224, 224), divisor=8, min_keep_ratio=0.1)
    recovery = LeastSquaresRecovery(
        model=model,
        space=space,
        calibration=TensorSplit(
            name="calibration",
            images=torch.zeros(1, 3, 224, 224),
            labels=torch.zeros(1, dtype=torch.int64),
            normalisation=None,
            augmentation=None,
        ),
        device=CPU,
        seed=0,
        positions_per_image=16,
        ridge=1e-3,
        batch_size=1,
        max_gram_gib=4.0,
    )
    size = sum(one.second.numel() * 4 for one in recovery.moments.values()) / 2**30
    print(f"peak memory {peak:.2f} GiB, {features / 2**30:.2f} of it the features of (a)'s regressions")
    print(f"moments of torchvision's resnet50 {size:.2f} GiB, layers left out: ", end="")
    print(", ".join(recovery.left_out) or "none")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    main()
