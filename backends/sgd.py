"""A few steps of SGD before a score: LeGR's τ̂ (Chin et al., CVPR 2020, arXiv:1904.12368)."""

from __future__ import annotations

import hashlib
import json
from itertools import islice

import torch
from torch import nn
from torch.nn import functional as F

from backends.data import Splits
from backends.seeding import isolated_rng
from compsearch.space import Policy


class SgdRecovery:
    """Trains the extracted network for `num_steps` batches of the train split, at a constant learning rate.

    The batches follow from `seed` and the policy, so the same policy always gives the same network.
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
        if num_steps < 1 or lr <= 0 or batch_size < 2:
            raise ValueError(
                "`num_steps >= 1`, `lr > 0` and `batch_size >= 2` must hold for SGD recovery, but got "
                f"{num_steps=}, {lr=}, {batch_size=}"
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
        """Changes all weights and batch-norm statistics; the network ends in eval mode."""
        digest = hashlib.sha256(f"{self._seed} {json.dumps(policy.to_json(), sort_keys=True)}".encode())
        seed = int.from_bytes(digest.digest()[:6], "big")
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(
            network.parameters(), lr=self._lr, momentum=self._momentum, weight_decay=self._weight_decay
        )
        left = self._num_steps
        with isolated_rng(seed, self._device):
            network.train()
            while left > 0:
                for images, labels in islice(self._train.training_batches(self._batch_size, generator), left):
                    loss = F.cross_entropy(network(images.to(self._device)), labels.to(self._device))
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    left -= 1
            network.eval()
