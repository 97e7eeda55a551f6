"""Re-estimating batch norm's statistics on calibration images: what most of a pruned network's lost accuracy needs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from backends.data import Split
from compsearch.space import Policy


class BatchNormRecovery:
    """Replaces every batch norm's running mean and variance by their average over `calibration`.

    The average is over batches of `batch_size`, equally weighted (``momentum=None``); a last batch of one image, which
    has no variance, is left out.
    """

    def __init__(self, *, calibration: Split, device: torch.device, batch_size: int) -> None:
        if batch_size < 2:
            raise ValueError(f"`batch_size >= 2` must hold for batch-norm statistics, but got {batch_size=}")
        self._device = device
        self._batches = [images.to(device) for images, _ in calibration.batches(batch_size) if len(images) > 1]

    def __call__(self, network: nn.Module, policy: Policy) -> None:
        """Changes running statistics only; the network stays in the mode it is in."""
        norms = [
            module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
        ]
        if not norms:
            return
        before = [(norm.momentum, norm.training) for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        try:
            with torch.no_grad():
                for images in self._batches:
                    network(images)
        finally:
            for norm, (momentum, training) in zip(norms, before, strict=True):
                norm.momentum = momentum
                norm.train(training)
