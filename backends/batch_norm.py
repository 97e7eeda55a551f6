"""Re-estimating batch-norm statistics: a cut moves the means and variances of all that follows."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backends.data import Split
from backends.workers import Workers
from compsearch.space import Policy

#: Batches are averaged in this many parts, each with its own copy of the network, whatever the number of workers.
_PARTS = 4


class BatchNormRecovery:
    """Gives every batch norm the mean and variance of its inputs on the `calibration` images.

    The average over batches of each batch's mean and unbiased variance, the network's other layers in eval mode: what
    torch accumulates with ``momentum=None``. Batches are `batch_size` images, or equally many, a little fewer, in each.
    """

    def __init__(
        self, *, calibration: Split, device: torch.device, batch_size: int, num_workers: int | None = None
    ) -> None:
        if batch_size < 2:
            raise ValueError(f"`batch_size >= 2` must hold to estimate batch-norm statistics, but got {batch_size=}")
        self._calibration = calibration
        self._device = device
        self._batch_size = batch_size
        self._workers = Workers(1 if device.type == "cuda" else num_workers)

    def __call__(self, network: nn.Module, policy: Policy) -> None:
        """Changes the running statistics only."""
        norms = _tracking(network)
        if not norms:
            return
        parts = [self._batches[start::_PARTS] for start in range(min(_PARTS, len(self._batches)))]
        copies = self._workers.map(functools.partial(_accumulate, network), parts)
        weights = [len(part) / len(self._batches) for part in parts]
        for norm, *others in zip(norms, *map(_tracking, copies), strict=True):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            means, variances = [other.running_mean for other in others], [other.running_var for other in others]
            norm.running_mean.copy_(_weighted(means, weights))
            norm.running_var.copy_(_weighted(variances, weights))

    @functools.cached_property
    def _batches(self) -> list[Tensor]:
        images = torch.cat([images for images, _ in self._calibration.batches(self._batch_size)])
        images = images.to(self._device, memory_format=torch.channels_last)
        return list(images.tensor_split(-(-len(images) // self._batch_size)))


def _tracking(network: nn.Module) -> list[_BatchNorm]:
    """The batch norms that keep running statistics."""
    norms = (module for module in network.modules() if isinstance(module, _BatchNorm))
    return [norm for norm in norms if norm.running_mean is not None]


def _accumulate(network: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """A copy of `network` whose statistics are the average over `batches`."""
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    for norm in _tracking(network):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in batches:
        network(batch)
    return network


def _weighted(tensors: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor:
    terms = [tensor * weight for tensor, weight in zip(tensors, weights, strict=True) if tensor is not None]
    return functools.reduce(torch.add, terms)
