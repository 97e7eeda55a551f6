"""The training of a network with every candidate in it, one path at a time.

Weights learn on the train split and gates are looked at on the search split, in turns that the searcher decides
(Cai et al., ICLR 2019, arXiv:1812.00332, section 3.2). Batch norms work on batch statistics throughout: running ones
would mix paths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backends.batch_stream import BatchStream
from backends.data import Splits
from backends.gating import Gating
from backends.looking import statistics_kept
from backends.path_sgd import PathSGD
from backends.precision import PRECISIONS, training_precision
from backends.seeding import isolated_rng
from backends.training import fits_channels_last, in_mode, num_batches
from compsearch.space import BoolArray, FloatArray, IntArray

#: Seeds of the two streams and of dropout are this far apart, so that runs of neighbouring seeds share nothing.
_SEED_STRIDE = 1_000_003


class Supernet:
    """Implements `compsearch.protocols.Supernet` on any `Gating`.

    The learning rate falls from `warmup_lr` to zero over `warmup_epochs` and from `lr` to zero over the other `epochs`,
    both by a cosine. `epochs` counts all. One step takes `batch_size` images, a look at the gates `gate_batch_size`.
    `precision` is as in `backends.training.Recipe`.
    """

    def __init__(
        self,
        *,
        gating: Gating,
        splits: Splits,
        device: torch.device,
        seed: int,
        warmup_epochs: int,
        epochs: int,
        warmup_lr: float,
        lr: float,
        momentum: float,
        weight_decay: float,
        label_smoothing: float,
        batch_size: int,
        gate_batch_size: int,
        precision: str,
    ) -> None:
        rules = {
            "0 <= warmup_epochs <= epochs": 0 <= warmup_epochs <= epochs,
            "epochs >= 1": epochs >= 1,
            "warmup_lr > 0": warmup_lr > 0,
            "lr > 0": lr > 0,
            "0 <= momentum < 1": 0 <= momentum < 1,
            "weight_decay >= 0": weight_decay >= 0,
            "0 <= label_smoothing < 1": 0 <= label_smoothing < 1,
            "batch_size >= 2": batch_size >= 2,
            "gate_batch_size >= 2": gate_batch_size >= 2,
            f"precision in {PRECISIONS}": precision in PRECISIONS,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(
                    f"`{rule}` must hold for a supernet, but got {warmup_epochs=}, {epochs=}, {warmup_lr=}, {lr=}, "
                    f"{momentum=}, {weight_decay=}, {label_smoothing=}, {batch_size=}, {gate_batch_size=}, {precision=}"
                )
        self.gating = gating
        self.candidates = gating.candidates
        self.warmup_epochs = warmup_epochs
        self.epochs = epochs
        self.steps_per_epoch = num_batches(splits.train.num_images, batch_size)
        self._device = device
        self._seed = seed
        self._warmup_lr = warmup_lr
        self._lr = lr
        self._label_smoothing = label_smoothing
        self._dtype = torch.bfloat16 if training_precision(precision, gating.network, device) == "bfloat16" else None
        gating.network.to(device)
        self._format = torch.contiguous_format
        if fits_channels_last(gating.network, splits.train, device):
            self._format = torch.channels_last
        gating.network.to(memory_format=self._format)
        self._sgd = PathSGD(gating.network, momentum=momentum, weight_decay=weight_decay)
        self._train = BatchStream(splits.train, batch_size=batch_size, seed=seed)
        self._search = BatchStream(splits.search, batch_size=gate_batch_size, seed=seed + _SEED_STRIDE)
        self._num_steps = 0
        self._num_looks = 0
        self._lr_scale = 1.0

    def train(self, paths: IntArray) -> FloatArray:
        """See `compsearch.protocols.Supernet`. The device is waited for once."""
        losses = []
        with in_mode(self.gating.network, training=True):
            for path in paths:
                images, labels = self._next(self._train)
                with self._seeded(self._num_steps), self._autocast():
                    loss = self._loss(self.gating.logits(images, path), labels)
                    loss.backward()  # type: ignore[no-untyped-call]
                self._sgd.step(self.lr, self.gating.movable(path))
                self._num_steps += 1
                losses.append(loss.detach())
        found = torch.stack(losses).double().cpu().numpy()
        bad = ~np.isfinite(found)
        return np.where(np.logical_or.accumulate(bad), np.nan, found)

    def gates(self, path: IntArray, wanted: BoolArray) -> tuple[float, FloatArray]:
        """See `compsearch.protocols.Supernet`; the loss is without label smoothing."""
        images, labels = self._next(self._search)
        with in_mode(self.gating.network, training=True), self._seeded(-1 - self._num_looks):
            with self._autocast():
                logits, gradients = self.gating.logits_with_gates(images, path, wanted)
                loss = F.cross_entropy(logits.float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            found = gradients()
        self._num_looks += 1
        return float(loss.detach()), found

    def accuracies(self, paths: IntArray) -> FloatArray:
        """See `compsearch.protocols.Supernet`."""
        images, labels = self._next(self._search)
        found = []
        network = self.gating.network
        with in_mode(network, training=True), statistics_kept(network), torch.no_grad():
            for path in paths:
                with self._seeded(-1 - self._num_looks), self._autocast():
                    logits = self.gating.logits(images, path).float()
                is_right = (logits.argmax(1) == labels).double().mean()
                found.append(torch.where(logits.isfinite().all(), is_right, torch.nan))
        self._num_looks += 1
        accuracies: FloatArray = torch.stack(found).cpu().numpy()
        return accuracies

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        epoch = self._num_steps / self.steps_per_epoch
        if epoch < self.warmup_epochs:
            peak, done = self._warmup_lr, epoch / self.warmup_epochs
        else:
            peak, done = self._lr, (epoch - self.warmup_epochs) / max(1e-9, self.epochs - self.warmup_epochs)
        return self._lr_scale * peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def slow_down(self) -> None:
        """Halves the learning rate from here on, and lets an epoch of its schedule pass."""
        self._lr_scale /= 2
        self._num_steps += self.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Tensors, on the CPU, and plain values; nothing shared with the network."""
        network = self.gating.network.state_dict()
        return {
            "network": {name: tensor.detach().cpu().clone() for name, tensor in network.items()},
            "momenta": self._sgd.state_dict(),
            "train": self._train.state_dict(),
            "search": self._search.state_dict(),
            "num_steps": self._num_steps,
            "num_looks": self._num_looks,
            "lr_scale": self._lr_scale,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues as the supernet that `state` was taken from would have."""
        self.gating.network.load_state_dict(state["network"])
        self._sgd.load_state_dict(state["momenta"])
        self._train.load_state_dict(state["train"])
        self._search.load_state_dict(state["search"])
        self._num_steps = state["num_steps"]
        self._num_looks = state["num_looks"]
        self._lr_scale = state["lr_scale"]

    def _next(self, stream: BatchStream) -> tuple[Tensor, Tensor]:
        images, labels = next(stream)
        return images.to(self._device, memory_format=self._format), labels.to(self._device)

    def _seeded(self, number: int) -> Any:
        """Dropout of step `number` follows from the seed and it alone."""
        return isolated_rng((self._seed * _SEED_STRIDE + number) % 2**63, self._device)

    def _autocast(self) -> Any:
        return torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self._label_smoothing)
