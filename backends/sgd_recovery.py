"""A few steps of training before a score: LeGR's recovery (Chin et al. 2020, arXiv:1904.12368, section 3.3, τ̂)."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.data import Splits
from backends.seeding import isolated_rng
from compsearch.space import Policy


class SgdRecovery:
    """`num_steps` steps of SGD with a constant learning rate on augmented batches of the train split.

    Batches, and dropout where there is any, follow from `seed` and the policy. Differs from the paper's code: that goes
    on through one loader, so that a score depends on what was scored before.
    """

    def __init__(
        self,
        *,
        splits: Splits,
        device: torch.device,
        seed: int,
        num_steps: int,
        lr: float,
        momentum: float,
        weight_decay: float,
        batch_size: int,
    ) -> None:
        if num_steps < 1 or lr <= 0 or not 0 <= momentum < 1 or weight_decay < 0 or batch_size < 2:
            raise ValueError(
                "`num_steps >= 1`, `lr > 0`, `0 <= momentum < 1`, `weight_decay >= 0` and `batch_size >= 2` must hold "
                f"for recovery by SGD, but got {num_steps=}, {lr=}, {momentum=}, {weight_decay=}, {batch_size=}"
            )
        self._train = splits.train
        self._device = device
        self._seed = seed
        self._num_steps = num_steps
        self._lr = lr
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._batch_size = batch_size

    def __call__(self, network: nn.Module, policy: Policy) -> None:
        """Changes every parameter and running statistic. A loss that isn't finite leaves the network so."""
        seed = _seed_of(self._seed, policy)
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=self._lr, momentum=self._momentum, weight_decay=self._weight_decay)
        modes = {module: module.training for module in network.modules()}
        network.to(self._device).train()
        with isolated_rng(seed, self._device), torch.enable_grad():
            for images, labels in itertools.islice(self._batches(seed), self._num_steps):
                loss = F.cross_entropy(network(images.to(self._device)), labels.to(self._device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        for module, mode in modes.items():
            module.training = mode

    def _batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield from self._train.training_batches(self._batch_size, generator)


def _seed_of(seed: int, policy: Policy) -> int:
    """A seed that differs between policies, and is the same in every process (as ``hash`` is not)."""
    text = json.dumps([seed, policy.to_json()], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
