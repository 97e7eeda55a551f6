"""Training batches without end, whose position can be saved and found again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from backends.data import Split


class BatchStream:
    """Shuffled, augmented batches of `split`, epoch after epoch, from a generator of its own.

    The next batch is a matter of `state_dict` alone: where the epoch's order came from, and how many of its batches
    were taken.
    """

    def __init__(self, split: Split, *, batch_size: int, seed: int) -> None:
        self._split = split
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._begin()

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] and labels [B]."""
        batch = next(self._batches, None)
        if batch is None:
            self._begin()
            batch = next(self._batches)
        self._taken += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"epoch_began": self._epoch_began.clone(), "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on behind the last batch that was taken when `state` was."""
        self._generator.set_state(state["epoch_began"])
        self._begin()
        taken = int(state["taken"])
        for _ in itertools.islice(self._batches, taken):
            pass
        self._taken = taken

    def _begin(self) -> None:
        self._epoch_began = self._generator.get_state()
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(
            self._split.training_batches(self._batch_size, self._generator)
        )
        self._taken = 0
