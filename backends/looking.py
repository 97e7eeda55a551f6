"""Running a network without leaving a trace: no gradients on its weights, no change to its running statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextlib.contextmanager
def without_gradients(network: nn.Module) -> Iterator[None]:
    """Inside, no operation on `network`'s parameters is recorded."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside, norms in training mode use the batch's statistics and leave the running ones alone."""
    # A momentum of 0 would do so too, but for statistics that are not finite.
    norms = [
        norm for norm in module.modules() if isinstance(norm, _NormBase) and norm.training and norm.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
