"""How networks are run for scoring: by a plan or as they are, in bfloat16 or float32, and the check that this is right.

bfloat16 has eight bits of precision: on ResNet-56 cut to half its MACs it changes the prediction of about one image in
200 without recovery or with re-estimated norms, and of one in 1,000 after least squares, always one whose two best
classes are nearly level. Where the check finds more than one in 1,000, such images are run again in float32; the gap
that counts as nearly level comes from the errors seen in the check.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backends.fast_inference import FusedNetwork
from backends.fusion import Plan, make_plan
from backends.workers import Workers

log = logging.getLogger(__name__)

#: An execution is taken when its predictions differ from the plain network's in float32 on no more of the images,
MAX_DISAGREEMENT = 0.005
#: and when no more of them had to be run again.
_MAX_DOUBTFUL = 0.2
#: Where the predictions differ on no more than this as they are, no image is run again: making a second network for a
#: handful of images takes a sixth of a whole score.
_NEGLIGIBLE_DISAGREEMENT = 0.001
#: Images run again at a time: few, so that all cores have some; always as many, as kernels are made for each number.
_DOUBTFUL_BATCH = 8
#: The difference of two logits is doubted within so many standard deviations of its error. Of the predictions that
#: bfloat16 would change, 7% lie beyond (the integral of a normal's tail from 1.5 on, over that from 0), about one in
#: 3,000 images; 3.0 would leave none, and have twice as many images run again.
_DOUBT = 1.5

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Execution:
    """A way of running networks.

    `plan_of` gives the plan of a network, None to run it as it is. `doubt` is the gap between the two best logits, as a
    multiple of the root mean square of all logits, within which an image is run again in float32.
    """

    plan_of: Callable[[nn.Module], Plan | None]
    dtype: torch.dtype
    doubt: float = 0.0

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def logits(self, network: nn.Module, batches: Sequence[Tensor], workers: Workers) -> tuple[Tensor, float]:
        """Logits [N, num_classes], float32, and the fraction of images that were run twice; `network` isn't changed.

        `batches` are float32 images [B, C, H, W], channels last, on the network's device.
        """
        logits = torch.cat(workers.map(self._bound(network, self.dtype), batches))
        if self.doubt == 0 or logits.shape[1] < 2:
            return logits, 0.0
        best, second = logits.topk(2, dim=1).values.unbind(1)
        doubtful = (best - second <= self.doubt * logits.square().mean().sqrt()).nonzero().squeeze(1)
        if len(doubtful) == 0:
            return logits, 0.0
        images = torch.cat([batch[picked] for batch, picked in _split(doubtful, batches)])
        wanted = -(-len(images) // _DOUBTFUL_BATCH) * _DOUBTFUL_BATCH
        filled = images[torch.arange(wanted) % len(images)].contiguous(memory_format=torch.channels_last)
        again = torch.cat(workers.map(self._bound(network, torch.float32), torch.split(filled, _DOUBTFUL_BATCH)))
        logits[doubtful] = again[: len(doubtful)]
        return logits, len(doubtful) / len(logits)

    def _bound(self, network: nn.Module, dtype: torch.dtype) -> Logits:
        plan = self.plan_of(network)
        if plan is not None:
            run = FusedNetwork(network, plan, dtype=dtype)
            return lambda images: run(images).float()
        module = copy.deepcopy(network).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return lambda images: module(images.to(dtype)).float()


def _split(indices: Tensor, batches: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each batch with the `indices` (ascending, over all batches) that fall into it, counted from its start."""
    found, start = [], 0
    for batch in batches:
        inside = indices[(indices >= start) & (indices < start + len(batch))] - start
        found.append((batch, inside))
        start += len(batch)
    return found


def _no_plan(network: nn.Module) -> None:
    return None


#: The network itself.
PLAIN = Execution(_no_plan, torch.float32)


def choose_execution(
    network: nn.Module,
    dense: nn.Module,
    batches: Sequence[Tensor],
    workers: Workers,
    dtype: torch.dtype,
    level: int = logging.INFO,
) -> Execution:
    """The fastest execution in `dtype` or float32 that predicts what the plain network does, checked on `network`.

    `network` and `dense` are in eval mode and were extracted by different policies: where their code gives the same
    plan, it holds for all. The choice is logged at `level`.
    """
    plan = make_plan(network)
    plan_of = (lambda _: plan) if plan is not None and plan == make_plan(dense) else make_plan
    expected, _ = PLAIN.logits(network, batches, workers)
    if not expected.isfinite().all():
        return PLAIN
    for candidate in dict.fromkeys((dtype, torch.float32)):
        for way in (plan_of, _no_plan) if plan is not None else (_no_plan,):
            execution = _checked(Execution(way, candidate), network, batches, workers, expected, level)
            if execution is not None:
                return execution
    return PLAIN


def _checked(
    execution: Execution,
    network: nn.Module,
    batches: Sequence[Tensor],
    workers: Workers,
    expected: Tensor,
    level: int,
) -> Execution | None:
    doubtful = 0.0
    try:
        logits, _ = execution.logits(network, batches, workers)
        if execution.dtype != torch.float32 and _disagreement(logits, expected) > _NEGLIGIBLE_DISAGREEMENT:
            error = (logits - expected).square().mean().sqrt() / expected.square().mean().sqrt()
            execution = dataclasses.replace(execution, doubt=_DOUBT * math.sqrt(2) * float(error))
            logits, doubtful = execution.logits(network, batches, workers)
    except Exception as error:  # a network's own code may fail in any way on another dtype, or by a plan
        log.log(level, "scoring can't use %s: %s", execution, (str(error).splitlines() or [type(error).__name__])[0])
        return None
    disagreement = _disagreement(logits, expected)
    log.log(
        level,
        "scoring in %s: predictions differ from the plain network's on %.2f%% of images, %.1f%% run twice",
        execution,
        100 * disagreement,
        100 * doubtful,
    )
    return execution if disagreement <= MAX_DISAGREEMENT and doubtful <= _MAX_DOUBTFUL else None


def _disagreement(logits: Tensor, expected: Tensor) -> float:
    """The share of images with another prediction."""
    return float((logits.argmax(1) != expected.argmax(1)).float().mean())
