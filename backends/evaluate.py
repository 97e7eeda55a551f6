"""Scoring policies on the search split: cut, recover, classify every image.

What is scored is what surgery leaves: without the removed channels, never the dense network with zeroed ones. How it is
run, and the check that it predicts what it would as it is in float32, is `backends.execution`; each batch runs on one
core.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.data import Split
from backends.execution import PLAIN, Execution, choose_execution
from backends.precision import PRECISIONS, resolve_precision
from backends.recovery import Recovery
from backends.surgery import Surgery
from backends.workers import Workers
from compsearch.protocols import CostModel
from compsearch.space import Policy, SearchSpace
from compsearch.trial import Measurement

log = logging.getLogger(__name__)

#: The execution is checked on the network that keeps this much of every group.
_CHECKED_KEEP_RATIO = 0.7


class NetworkEvaluator:
    """Measures policies of `space` on `split`, whose images are held on `device` in float32.

    `model`, which is not changed, is the dense network, `surgery` what a policy does to it, `recovery` what is done to
    a network after the cut. Every measurement carries the costs of all `cost_models`. A policy is measured once; the
    answer is remembered for as long as the weights of `model` stay what they are.

    `precision` auto is bfloat16 where the device has it natively. It is checked once per state of the weights, on a
    policy that depends on `space` and `model` alone, so that a resumed run scores as the interrupted one did.
    `num_workers` batches of `batch_size` images are classified at a time on the CPU, one core each; None for all cores
    torch may use. The answers don't depend on it.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        space: SearchSpace,
        surgery: Surgery,
        split: Split,
        recovery: Recovery,
        cost_models: Sequence[CostModel],
        device: torch.device,
        batch_size: int,
        precision: str,
        num_workers: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"`evaluator.batch_size >= 1` must hold, but got {batch_size=}")
        if precision not in PRECISIONS:
            raise ValueError(f"`evaluator.precision` must be one of {', '.join(PRECISIONS)}, but got {precision!r}")
        self._model = model
        self._space = space
        self._surgery = surgery
        self._split = split
        self._recovery = recovery
        self._cost_models = tuple(cost_models)
        self._device = device
        self._batch_size = batch_size
        self._precision = precision
        self._workers = Workers(1 if device.type == "cuda" else num_workers)
        self._cache: dict[Policy, Measurement] = {}
        self._weights = self._weights_now()
        self._log_level = logging.INFO

    def measure(self, policies: Sequence[Policy]) -> list[Measurement]:
        """One measurement per policy, in that order. Raises ValueError when a policy doesn't fit the space.

        A network that gives NaN or infinity on any image has accuracy and loss NaN.
        """
        self._forget_other_weights()
        for policy in policies:
            if policy not in self._cache:
                self._cache[policy] = self._measure(policy)
        return [self._cache[policy] for policy in policies]

    def _weights_now(self) -> tuple[int, ...]:
        """Changes with every write to a parameter: whoever trains the model that is scored needs do nothing more."""
        return tuple(parameter._version for parameter in self._model.parameters())

    def _forget_other_weights(self) -> None:
        now = self._weights_now()
        if now != self._weights:
            self._weights = now
            self._cache.clear()
            self.__dict__.pop("execution", None)

    def recovered(self, policy: Policy) -> nn.Module:
        """The network that a score of `policy` is of, in eval mode on the evaluator's device."""
        network = self._cut(policy)
        with self._surgery.held(network, self._space):
            self._recovery(network, policy)
        return network

    def _cut(self, policy: Policy) -> nn.Module:
        return self._surgery(self._model, self._space, policy).to(self._device).eval()

    @functools.cached_property
    def execution(self) -> Execution:
        """How networks are run, checked when first asked for."""
        policy = self._surgery.typical(self._model, self._space, _CHECKED_KEEP_RATIO)
        # Of every block it has another operation, where there is one: a plan that holds for both holds for all.
        counts = [group.counts[-1] for group in self._space.groups]
        operations = [len(block.operations) - 1 for block in self._space.blocks]
        other = self._space.select(counts, np.zeros(self._space.num_units), operations)
        network, dense = self.recovered(policy), self._cut(other)
        dtype = getattr(torch, resolve_precision(self._precision, self._device))
        execution = choose_execution(network, dense, self._images, self._workers, dtype, self._log_level)
        self._log_level = logging.DEBUG  # once is enough for people who train the model that is scored
        if self._precision == "bfloat16" and execution.dtype != torch.bfloat16:
            log.warning("evaluator.precision=bfloat16 is not used: it changes too many predictions of this network")
        return execution

    def _measure(self, policy: Policy) -> Measurement:
        network = self.recovered(policy)
        try:
            logits, _ = self.execution.logits(network, self._images, self._workers)
        except RuntimeError as error:
            # A plan can hold a size that another policy changes; the network itself decides whether it runs.
            log.warning("scoring by a plan failed, running the network as it is: %s", str(error).splitlines()[0])
            logits, _ = PLAIN.logits(network, self._images, self._workers)
        costs = {model.resource: model.cost(policy) for model in self._cost_models}
        num_images = len(self._labels)
        accuracy, top5, loss = _scores(logits[:num_images], self._labels)
        return Measurement(self._split.name, num_images, accuracy, top5, loss, costs)

    @functools.cached_property
    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        """Images, as many in every batch because kernels are made for each number, and labels.

        The first images again fill the last batch; they have no labels there.
        """
        num_images = self._split.num_images
        size = -(-num_images // -(-num_images // self._batch_size))
        batches = [
            (images.to(self._device, torch.float32, memory_format=torch.channels_last), labels.to(self._device))
            for images, labels in self._split.batches(size)
        ]
        images, labels = batches[-1]
        if missing := size - len(labels):
            filled = torch.cat([images, batches[0][0][:missing]])
            batches[-1] = filled.contiguous(memory_format=torch.channels_last), labels
        return batches

    @property
    def _images(self) -> list[Tensor]:
        return [images for images, _ in self._batches]

    @functools.cached_property
    def _labels(self) -> Tensor:
        return torch.cat([labels for _, labels in self._batches])


def _scores(logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Top-1 accuracy, top-5 accuracy and mean cross-entropy, all NaN when a logit [N, num_classes] isn't finite."""
    if not bool(logits.isfinite().all()):
        return math.nan, math.nan, math.nan
    is_label = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    num_images = len(labels)
    loss = float(F.cross_entropy(logits.double(), labels))
    return float(is_label[:, 0].sum()) / num_images, float(is_label.sum()) / num_images, loss
