"""Scores policies: extract, recover, and run the search split through the network as fast as the machine can."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.data import Split
from backends.fast_inference import FusedNetwork
from backends.fusion import make_plan
from backends.recovery import Recovery
from backends.surgery import extract
from backends.training import PRECISIONS, resolve_precision
from backends.workers import Workers
from compsearch.protocols import CostModel
from compsearch.space import Policy, SearchSpace
from compsearch.trial import Measurement

log = logging.getLogger(__name__)

#: The fast path stays on where it predicts as float32 does on all but this share of the images.
MAX_DISAGREEMENT = 0.005

_Network = Callable[[Tensor], Tensor]


class NetworkEvaluator:
    """Measures extracted networks on the images of `split`, which are prepared once and kept on `device`.

    The fast path folds norms into convolutions, fuses what follows them, and computes in bfloat16 where the processor
    has it (`precision` auto) on `num_workers` single-core threads (null: one per core). The first network is measured
    by the plain float32 module as well: when predictions differ on more than `MAX_DISAGREEMENT` of the images, the fast
    path falls back to float32, and then to the plain module. `mode` says which one is used. A policy is measured once.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        space: SearchSpace,
        split: Split,
        recovery: Recovery,
        cost_models: Sequence[CostModel],
        device: torch.device,
        batch_size: int,
        precision: str,
        num_workers: int | None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"`evaluator.precision` must be one of {', '.join(PRECISIONS)}, but got {precision!r}")
        self._model = model
        self._space = space
        self._split_name = split.name
        self._recovery = recovery
        self._cost_models = tuple(cost_models)
        batches = [
            (images.to(device, memory_format=torch.channels_last), labels)
            for images, labels in split.batches(batch_size)
        ]
        self._images = [images for images, _ in batches]
        self._labels = torch.cat([labels for _, labels in batches]).to(device)
        self._plan = make_plan(copy.deepcopy(model).eval())
        self._workers = Workers(1 if device.type == "cuda" else num_workers)
        self._cache: dict[Policy, Measurement] = {}
        if precision == "auto":
            # bfloat16 first where it is native, float32 behind it.
            self._candidates: tuple[str, ...] = tuple(dict.fromkeys([resolve_precision("auto", device), "float32"]))
        else:
            self._candidates = (precision,)
        #: 'bfloat16', 'float32' (both on the fast path) or 'plain'; empty until the first network was measured.
        self.mode = ""

    def measure(self, policies: Sequence[Policy]) -> list[Measurement]:
        """One measurement per policy, in their order; NaN where a network gave anything but finite logits."""
        for policy in policies:
            if policy not in self._cache:
                self._cache[policy] = self._measure(policy)
        return [self._cache[policy] for policy in policies]

    def _measure(self, policy: Policy) -> Measurement:
        network = extract(self._model, self._space, policy).eval()
        self._recovery(network, policy)
        logits = self._logits(network)
        num_images = len(self._labels)
        costs = {model.resource: model.cost(policy) for model in self._cost_models}
        if not bool(logits.isfinite().all()):
            return Measurement(self._split_name, num_images, math.nan, math.nan, math.nan, costs)
        is_label = logits.topk(min(5, logits.shape[1])).indices == self._labels[:, None]
        return Measurement(
            split=self._split_name,
            num_images=num_images,
            accuracy=int(is_label[:, 0].sum()) / num_images,
            top5=int(is_label.sum()) / num_images,
            loss=float(F.cross_entropy(logits, self._labels)),
            costs=costs,
        )

    def _logits(self, network: nn.Module) -> Tensor:
        """Float32 logits of all images, [num_images, num_classes]."""
        if self.mode:
            return self._run(self._prepared(network, self.mode))
        exact = self._run(copy.deepcopy(network))
        if not bool(exact.isfinite().all()):
            return exact  # nothing to compare with; the next network decides
        for mode in self._candidates if self._plan is not None else ():
            try:
                logits = self._run(self._prepared(copy.deepcopy(network), mode))
            except (RuntimeError, TypeError, AttributeError) as error:
                # What a network's own code may raise when it meets another dtype or memory layout.
                log.info("scores: %s fails on the fast path (%s)", mode, str(error).splitlines()[0])
                continue
            off = float((logits.argmax(1) != exact.argmax(1)).float().mean())
            if bool(logits.isfinite().all()) and off <= MAX_DISAGREEMENT:
                self.mode = mode
                log.info("scores: %s, predictions differ from float32 on %.2f%% of the images", mode, 100 * off)
                return logits
            log.info("scores: not in %s, where predictions differ on %.2f%% of the images", mode, 100 * off)
        self.mode = "plain"
        log.info("scores: the plain module in float32")
        return exact

    def _prepared(self, network: nn.Module, mode: str) -> _Network:
        if mode == "plain" or self._plan is None:
            return network
        return FusedNetwork(network, self._plan, dtype=getattr(torch, mode))

    def _run(self, network: _Network) -> Tensor:
        # A network's own code may view its activations as contiguous, so that is what the plain module gets.
        plain = isinstance(network, nn.Module)
        images = [batch.contiguous() for batch in self._images] if plain else self._images
        return torch.cat(self._workers.map(network, images)).float()
