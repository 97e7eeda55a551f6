"""Seconds per evaluation of LeGR, here and by its released code, in turns on the same images without recovery.

The released code is no part of this project: give a checkout of github.com/cmu-enyac/LeGR.

    python -m benchmarks.legr_evaluation --released LeGR --images cifar10-subset --weights resnet56.pt

One evaluation there: prune by one (α, κ), classify the images, load the dense network again. Here: one step of the
searcher, which prunes by one (α, κ) and classifies the images.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms

from compsearch.assembly import assemble
from compsearch.composition import compose_config
from compsearch.garbage import only_new_objects

NUM_IMAGES = 508
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class InMemory(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Images as arrays, turned into tensors one by one, as torchvision's CIFAR-10 does."""

    def __init__(self, root: Path) -> None:
        folder = torchvision.datasets.ImageFolder(str(root / "train"))
        chosen = np.random.default_rng(0).permutation(len(folder))[:NUM_IMAGES]
        self.images = [np.array(folder[index][0]) for index in chosen]
        self.labels = [folder[index][1] for index in chosen]
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def released_evaluation(checkout: Path, images: Path, weights: Path) -> Callable[[float], None]:
    """A function that does one evaluation of the released code at a cost_ratio."""
    sys.path.insert(0, str(checkout))
    from model import resnet_cifar10
    from pruner.fp_resnet import FilterPrunerResNet
    from utils.drivers import test

    def shortcut(self: Any, x: Tensor) -> Tensor:
        x = self.avg(x)  # the released one makes its zeros on CUDA whatever the device
        return F.pad(x, (0, 0, 0, 0, 0, max(0, self.out_channels - x.shape[1])))

    resnet_cifar10.DownsampleA.forward = shortcut
    model = resnet_cifar10.ResNet56()
    given = [value for name, value in torch.load(weights, weights_only=True).items() if "num_batches" not in name]
    own = [name for name in model.state_dict() if "num_batches" not in name]
    model.load_state_dict({**model.state_dict(), **dict(zip(own, given, strict=True))})
    file = Path(tempfile.mkdtemp()) / "dense.pt"
    torch.save(model, file)
    loader = torch.utils.data.DataLoader(InMemory(images), batch_size=32, num_workers=0)
    pruner = FilterPrunerResNet(model, "l2_weight", 10, 0.1, device="cpu")

    def start() -> None:
        pruner.model = torch.load(file, weights_only=False).eval()
        pruner.reset()
        pruner.forward(torch.zeros(1, 3, 32, 32))

    start()
    norms = pruner.filter_ranks.copy()
    rng = np.random.default_rng(0)

    def evaluate(cost_ratio: float) -> None:
        genome = [(float(np.exp(rng.normal())), float(rng.normal() * norms[layer].std())) for layer in sorted(norms)]
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            pruner.pruning_with_transformations(norms, genome, cost_ratio)
            pruner.reset()
            pruner.forward(torch.zeros(1, 3, 32, 32))
            test(pruner.model, loader, device="cpu", get_loss=True)
            start()

    return evaluate


def our_evaluation(images: Path, weights: Path, cost_ratio: float, space: str) -> Callable[[], object]:
    """A function that takes one step of our searcher."""
    overrides = [
        "searcher=legr",
        "searcher.evolution.initial_batch=1",
        "model=resnet56",
        f"model.weights={weights}",
        "dataset=imagefolder",
        f"dataset.build.root={images}",
        f"dataset.build.search_images={NUM_IMAGES}",
        "recover=none",
        f"space={space}",
        f"budget.cost_ratio={cost_ratio}",
        "run_name=benchmark",
    ]
    return assemble(compose_config(overrides)).searcher.step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released", type=Path, required=True, help="checkout of the released code")
    parser.add_argument("--images", type=Path, required=True, help="folder with train/<class>/*.png")
    parser.add_argument("--weights", type=Path, required=True, help="state_dict of ResNet-56")
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    released = released_evaluation(arguments.released, arguments.images, arguments.weights)
    print(f"{NUM_IMAGES} images, {torch.get_num_threads()} threads, median of {arguments.rounds} rounds in turns")
    for cost_ratio in (0.5, 0.3):
        ours = {
            space: our_evaluation(arguments.images, arguments.weights, cost_ratio, space)
            for space in ("channels", "inner")
        }
        ways: dict[str, Callable[[], object]] = {"released": lambda ratio=cost_ratio: released(ratio)}  # type: ignore[misc]
        ways |= {f"space={space}": step for space, step in ours.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        with only_new_objects():  # as a search runs
            for number in range(arguments.rounds + 1):
                for name, way in ways.items():
                    begun = time.perf_counter()
                    way()
                    if number:  # the first round warms up
                        seconds[name].append(time.perf_counter() - begun)
        reference = float(np.median(seconds["released"]))
        for name, values in seconds.items():
            median = float(np.median(values))
            print(f"cost_ratio {cost_ratio}  {name:15s} {median:6.3f} s  {reference / median:5.1f}×")


if __name__ == "__main__":
    main()
